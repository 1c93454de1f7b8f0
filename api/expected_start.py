"""When a queued job is likely to start: from what workers are at, and what is ahead of it.

Jobs ahead of it go one after another to the worker that is free first. How many there are follows
from turns, priorities and limits (`place_in_queue` in the ledger's scripts); how long each takes is
the average of what is predicted of all jobs in line, since only their number is known, not which.
So the answer holds nothing of another tenant's job, and is a range.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from api.jobs.record import HeldJob, Outlook, PredictedTime, Times
from strucprune_core.plan.seconds import LEAST, MOST

# A worker that is free answers a doorbell, and starts a process.
ANSWER_SECONDS = 2.0

Bound = Literal["least_seconds", "most_seconds"]


@dataclass(frozen=True)
class ExpectedStart:
    """Seconds until a job starts, between which it probably will."""

    least_seconds: float
    most_seconds: float


def expected_start(outlook: Outlook) -> ExpectedStart | None:
    """When the job starts; None where that cannot be told.

    It cannot be told where no worker is there, while the job rests or its tenant is at its limit of
    running jobs, and where nothing was predicted of the jobs before it.
    """
    place = outlook.place
    if place.ahead is None or place.waits_for != "turn" or not place.workers:
        return None
    least = _start(outlook, place.ahead, "least_seconds", LEAST)
    most = _start(outlook, place.ahead, "most_seconds", MOST)
    if least is None or most is None:
        return None
    return ExpectedStart(round(least, 1), round(most + ANSWER_SECONDS, 1))


def _start(outlook: Outlook, ahead: int, bound: Bound, factor: float) -> float | None:
    held = [_left(job, bound, factor) for job in outlook.held[: outlook.place.workers]]
    known = [each for each in held if each is not None]
    if len(known) < len(held):
        return None
    free = [0.0] * (outlook.place.workers - len(known)) + known
    each = _average(outlook.waiting, bound) if ahead else 0.0
    if each is None:
        return None
    heapq.heapify(free)
    for _ in range(ahead):
        heapq.heappush(free, heapq.heappop(free) + each)
    return free[0]


def _left(job: HeldJob, bound: Bound, factor: float) -> float | None:
    """Seconds until a worker has done its job."""
    progress = job.progress or {}
    left = progress.get("eta_seconds")
    if left is not None:
        return float(left) * factor
    whole = _average([job.predicted], bound)
    return None if whole is None else whole * (1.0 - float(progress.get("fraction") or 0.0))


def _average(jobs: Iterable[Times], bound: Bound) -> float | None:
    """Of jobs of which something was predicted, on any class of workers."""
    found = [
        statistics.fmean(_bound(each, bound) for each in times.values()) for times in jobs if times
    ]
    return statistics.fmean(found) if found else None


def _bound(time: PredictedTime, bound: Bound) -> float:
    return time.least_seconds if bound == "least_seconds" else time.most_seconds
