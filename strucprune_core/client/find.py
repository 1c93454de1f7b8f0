"""Which job a person means by the beginning of its id, as a flow (see `flow`)."""

from __future__ import annotations

import re
from itertools import islice

from strucprune_core.client import calls
from strucprune_core.client.errors import AmbiguousId, NoSuchId
from strucprune_core.client.flow import Flow, Retries
from strucprune_core.errors import InvalidSpec

MOST_JOBS = 1000
"""So many of the newest jobs are looked at."""
LEAST_DIGITS = 4
_SHOWN = 8
_ID = re.compile(r"job_[0-9a-f]{32}")
_BEGINNING = re.compile(r"(?:job_)?([0-9a-f]{0,32})")


def find(retries: Retries, beginning: str) -> Flow[str]:
    """The id of the job that begins like this; a whole id is not looked for.

    Args:
        retries: The client's.
        beginning: An id, or at least four digits from its start, with or without `job_`.

    Raises:
        InvalidSpec: it is too short to mean one job.
        AmbiguousId: several of the newest jobs begin so; the message lists them.
        NoSuchId: none does.
    """
    found = _BEGINNING.fullmatch(beginning)
    if _ID.fullmatch(beginning) or found is None:
        return beginning  # Whole; or no id, as the service will say.
    if len(found[1]) < LEAST_DIGITS:
        raise InvalidSpec(
            f"'{beginning}' is too short for the beginning of a job's id",
            remedy=f"Give at least {LEAST_DIGITS} digits of it.",
        )
    pages, seen, matches = calls.jobs(retries), 0, []
    while pages.mark is not None and seen < MOST_JOBS:
        jobs = yield from pages.next()
        seen += len(jobs)
        matches += [job for job in jobs if job.id.startswith(f"job_{found[1]}")]
    if len(matches) == 1:
        return matches[0].id
    if not matches:
        where = f"the newest {seen:,} jobs" if pages.mark is not None else "your jobs"
        raise NoSuchId(f"None of {where} has an id that begins with '{beginning}'")
    lines = [f"{job.id} ({job.state})" for job in islice(matches, _SHOWN)]
    if len(matches) > _SHOWN:
        lines.append(f"and {len(matches) - _SHOWN} more")
    raise AmbiguousId("\n".join([f"'{beginning}' begins the ids of several jobs:", *lines]))
