"""`strucprune jobs quota` and `workers`: what the service has and allows. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strucprune_core.commands.console import JsonOption, print_json, stderr
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import UrlOption, connect
from strucprune_core.commands.jobs.view import time_of
from strucprune_core.commands.tables import print_records, print_table, shown

if TYPE_CHECKING:
    from strucprune_core.client.models import Quota, Worker

# The words of the web page. A limit of a newer service is shown by its own name.
_LIMITS = {
    "open_jobs": "jobs that have not ended",
    "running_jobs": "jobs that workers hold",
    "kept_jobs": "jobs in the list",
    "kept_bytes": "memory of these jobs",
    "model_bytes": "size of a job's model",
    "scratch_bytes": "temporary files of a job",
    "deadline_seconds": "time of a job",
    "requests_per_second": "requests per second",
    "request_burst": "requests at once after a pause",
    "event_streams": "open event streams",
    "max_priority": "highest priority",
}


def quota(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show your organisation's limits and what it has of them."""
    with failures(as_json), connect(url) as client:
        found = client.quota()
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            _print_quota(found)


def _print_quota(found: Quota) -> None:
    names = [*_LIMITS, *(name for name in {**found.use, **found.limits} if name not in _LIMITS)]
    rows = [
        [
            _LIMITS.get(name, name.replace("_", " ")),
            shown(name, found.use[name]) if name in found.use else "",
            _limit(name, found.limits),
        ]
        for name in names
        if name in found.use or name in found.limits
    ]
    print_table(["", "now", "limit"], rows, right=["now", "limit"])


def _limit(name: str, limits: Mapping[str, int | float | str | None]) -> str:
    if name not in limits:
        return ""
    value = limits[name]
    return "no limit" if value is None else shown(name, value)


def workers(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the workers and what they do; for operators.

    Shows jobs of all organisations, so it needs a key with the scope admin.
    """
    with failures(as_json), connect(url) as client:
        found = client.workers()
        if as_json:
            print_json([each.model_dump(mode="json") for each in found])
        elif found:
            print_records([_row(each) for each in found], right=["threads"])
        else:
            stderr.print("No worker has sent a heartbeat within the last minute.")


def _row(worker: Worker) -> dict[str, str]:
    beat = worker.last_heartbeat_at
    return {
        "worker": worker.name,
        "pool": worker.pool,
        "version": worker.version or "",
        "device": worker.device or "",
        "threads": "" if worker.threads is None else str(worker.threads),
        "job": worker.job_id or "idle",
        "part": worker.part or "",
        "phase": worker.phase or "",
        "unit": worker.unit or "",
        "last heartbeat": "" if beat is None else time_of(beat),
    }
