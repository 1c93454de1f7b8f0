"""How long a tenant's first job waits behind the backlog of another, in units of a job's length."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.load_client import Connection, request
from strucprune_core.client import Job, StrucPruneClient
from strucprune_core.client.calls import JOBS

if TYPE_CHECKING:
    from benchmarks.load import LoadStack

OTHER = "other"
# Of a job's work; the service's own part comes on top and is in the length that is measured.
JOB_SECONDS = 3.0
# One after another, each once its tenant has nothing running.
JOBS_OF_OTHER = 6
_SUBMITTERS = 8
_POLL_SECONDS = 0.02


async def _submit_backlog(stack: LoadStack, jobs: int, body: Callable[[], dict[str, Any]]) -> None:
    numbers = iter(range(jobs))

    async def some() -> None:
        connection = await Connection.open(stack.port)
        for _ in numbers:
            status, data = await connection.send(request("POST", JOBS, stack.api_key, body()))
            if status != 202:
                raise RuntimeError(f"{status}: {data[:500].decode(errors='replace')}")
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(_SUBMITTERS):
            group.create_task(some())


def _ended(client: StrucPruneClient, job: Job) -> Job:
    while not (job := client.get(job.id)).ended:
        time.sleep(_POLL_SECONDS)
    return job


def _lengths(client: StrucPruneClient) -> list[float]:
    """From the starts of the backlog's jobs to their ends."""
    return [
        (job.finished_at - job.started_at).total_seconds()
        for job in client.list(state="succeeded")
        if job.started_at and job.finished_at
    ]


def turns_table(result: dict[str, Any]) -> str:
    """The waits as a Markdown table."""
    lines = [
        "| workers | jobs of the other tenant | median wait | longest wait |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {workers} | {found['backlog']:,} | {found['median_wait_jobs']:.1f} jobs "
        f"| {found['longest_wait_jobs']:.1f} jobs |"
        for workers, found in result["turns"].items()
    ]
    return "\n".join(lines)


def measure_turns(
    stack: LoadStack,
    workers: int,
    jobs: int,
    body: Callable[[], dict[str, Any]],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Queue so many jobs of one tenant, then submit some of another, one after another.

    Args:
        stack: Without workers yet.
        workers: To start.
        jobs: Of the backlog.
        body: Makes a job.
        tell: Gets a line.
    """
    asyncio.run(_submit_backlog(stack, jobs, body))
    stack.start_workers(workers, JOB_SECONDS)
    waits = []
    with (
        StrucPruneClient(stack.api_url, stack.api_key) as client,
        StrucPruneClient(stack.api_url, stack.api_keys[OTHER]) as other,
    ):
        while len(_lengths(client)) < workers:
            time.sleep(_POLL_SECONDS)
        for number in range(JOBS_OF_OTHER):
            # At other instants of the jobs that run.
            time.sleep(JOB_SECONDS * number / JOBS_OF_OTHER)
            job = _ended(other, other.submit(body()))
            queued, running, *_ = [event for event in other.events(job.id) if event.type == "state"]
            waits.append((running.at - queued.at).total_seconds())
        length = statistics.median(_lengths(client))
        left = stack.states().get("queued", 0)
    found = {
        "backlog": jobs,
        "still_waiting": left,
        "job_seconds": length,
        "median_wait_jobs": statistics.median(waits) / length,
        "longest_wait_jobs": max(waits) / length,
    }
    tell(
        f"{workers} workers, {jobs} jobs of another tenant before it: a job waits "
        f"{found['median_wait_jobs']:.2f} jobs at the median and {found['longest_wait_jobs']:.2f} "
        f"at most, of {length:.2f} s each; {left} of the others wait on"
    )
    return found
