"""In which order test files run, and beside which others: `pytest --numprocesses auto`."""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadFileScheduling

MOST_WORKERS = 4
# One after the other in one process: they share a stack of real services, and mostly wait for it.
TOGETHER = ("tests/integration/", "tests/docs/test_blocks.py")
# Files that take long, the longest first, so that none of them is left for the end.
FIRST = (
    *TOGETHER,
    "tests/chaos/",
    "tests/core/jobs/",
    "tests/worker/",
    "tests/coverage/",
    "tests/embedded/",
    "tests/docs/",
    "tests/contract/",
    "tests/ship/",
)


def worker_count() -> int:
    """One process more than there are cores: many tests wait for services, or for time to pass."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS)


def started_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests in the order in which their files are given to processes."""

    def rank(item: pytest.Item) -> int:
        places = (at for at, start in enumerate(FIRST) if item.nodeid.startswith(start))
        return next(places, len(FIRST))

    return sorted(items, key=rank)


class Scheduler(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a process one file at a time, but all that is `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER[0] if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)
