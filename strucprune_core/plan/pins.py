"""Fixes the revisions of a job: each branch of a hub is replaced by its commit. No torch.

A service does it when a job is submitted, the command and the library when it first runs. The
commit is part of the job from then on: of its fingerprint and its report. So an attempt that
resumes it reads the same files, whatever was pushed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from strucprune_core.errors import StrucPruneError, naming_field
from strucprune_core.plan.partial import PartialJob
from strucprune_core.plan.places import NamesPlaces, named_uris, with_uri
from strucprune_core.spec import JobSpec


def pinned_spec(spec: JobSpec, pin: Callable[[str], str]) -> JobSpec:
    """The job with every URI that it reads replaced by what `pin` makes of it.

    Args:
        spec: The job.
        pin: `storage.open.pinned`, or what remembers its results.

    Raises:
        StrucPruneError: raised by `pin`, with the field of the job.
    """
    for field, uri in _read_uris(spec).items():
        with naming_field(field):
            spec = with_uri(spec, field, pin(uri))
    return spec


def pinned_parts(
    job: PartialJob, pin: Callable[[str], str]
) -> tuple[PartialJob, list[StrucPruneError]]:
    """The same of a job that is not complete: without what cannot be pinned, and why it cannot.

    Args:
        job: What is known of it.
        pin: As of `pinned_spec`.
    """
    issues = []
    for field, uri in _read_uris(job).items():
        try:
            with naming_field(field):
                job = with_uri(job, field, pin(uri))
        except StrucPruneError as error:
            issues.append(error)
            job = job.without(field)
    return job, issues


def _read_uris(job: NamesPlaces) -> dict[str, str]:
    return {field: uri for field, uri in named_uris(job).items() if field != "output.uri_prefix"}
