"""Extending a finished job: further sizes from its measurements, as a job of its own.

The new job works in the workspace of the old one, where what all sizes share is finished already
(see `strucprune_core.plan.sizes`). It has an output and a report of its own. So it must agree with
the old one in all that determines a result but the sizes, and the old one must have succeeded.
"""

from __future__ import annotations

from typing import Any

from api.jobs.archive import recall
from api.jobs.journal import new_id
from api.jobs.record import JobRecord
from api.jobs.state import JobState
from api.services import Services
from strucprune_core.errors import InvalidSpec
from strucprune_core.run.workspace import OWNER
from strucprune_core.spec import JobSpec


class CannotExtend(InvalidSpec):
    """The job cannot go on from the job that it is to extend."""

    code = "cannot_extend"


def extension_issues(
    services: Services, tenant: str, spec: JobSpec, extends: str | None
) -> list[CannotExtend]:
    """What keeps a job from extending job `extends`; nothing if it extends none.

    Args:
        services: Ledger and journal are asked.
        tenant: Whose jobs may be extended.
        spec: The new job, with branches of a hub replaced by commits.
        extends: The job that it is to extend.

    Raises:
        StorageError: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    if extends is None:
        return []
    earlier = _own_job(services, tenant, extends)
    if earlier is None:
        return [_refusal("there is no such job", "Name one of your own, or leave this out.")]
    if earlier.state != JobState.SUCCEEDED:
        return [
            _refusal(
                f"the job {extends} is {earlier.state.value}; only one that has succeeded can be "
                "extended",
                "Wait until it has succeeded, or submit a new job without `extends`.",
            )
        ]
    before = JobSpec.model_validate(earlier.spec)
    if not before.pruning.sizes:
        return [
            _refusal(
                f"the job {extends} was for one size, and kept nothing that others could share",
                "Submit a job with pruning.sizes, without `extends`. That one can be extended.",
            )
        ]
    if not spec.pruning.sizes:
        return [
            _refusal(
                "a job that extends another one is of several sizes",
                "Give the further sizes, be it one alone, as pruning.sizes.",
                field="pruning.sizes",
            )
        ]
    if spec.result_fingerprint() != before.result_fingerprint():
        return _differences(spec, before, extends)
    if services.journal.workspace(earlier.workspace_id).stat(OWNER) is None:
        return [
            _refusal(
                f"the workspace of the job {extends} is gone, and its measurements with it",
                "Submit a new job without `extends`.",
            )
        ]
    return []


def workspace_of(services: Services, extends: str | None) -> str | None:
    """The job whose workspace a job works in that extends job `extends`; None for its own."""
    if extends is None:
        return None
    earlier = recall(services.journal, services.ledger, extends)
    return extends if earlier is None else earlier.workspace_id


def _own_job(services: Services, tenant: str, job_id: str) -> JobRecord | None:
    """The tenant's job. Another tenant's job takes the same requests as none (see `lookup`)."""
    record = services.ledger.get(job_id)
    if record is None or record.tenant != tenant:
        sought = job_id if record is None else new_id()
        record = recall(services.journal, services.ledger, sought)
    return record if record is not None and record.tenant == tenant else None


def _differences(spec: JobSpec, before: JobSpec, extends: str) -> list[CannotExtend]:
    new, old = (each.model_dump(mode="json", exclude=_FREE) for each in (spec, before))
    return [
        CannotExtend(
            f"this differs from the job {extends}, whose measurements it changes",
            field=field,
            remedy=f"Give the same value as there ({_shown(value)}), or submit a new job without "
            "`extends`.",
        )
        for field, value in _changed(new, old)
    ]


# Fields that a job may change of the one that it extends.
_FREE: dict[str, Any] = {
    "runtime": True,
    "name": True,
    "labels": True,
    "output": {"uri_prefix"},
    "pruning": {"sizes"},
    "calibration": {"allow_degenerate"},
}


def _changed(new: Any, old: Any, field: str = "") -> list[tuple[str, Any]]:
    """Dotted names of the fields that differ, each with its old value."""
    if isinstance(new, dict) and isinstance(old, dict):
        found: list[tuple[str, Any]] = []
        for name in new:
            below = f"{field}.{name}" if field else name
            found += _changed(new[name], old.get(name), below)
        return found
    return [] if new == old else [(field, old)]


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _refusal(message: str, remedy: str, field: str = "extends") -> CannotExtend:
    return CannotExtend(message, field=field, remedy=remedy)
