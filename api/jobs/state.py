"""The states of a job and the transitions between them, as data.

    queued ──> running ──> succeeded | failed
      │  ^       │  ^ │
      │  │       v  │ └──> cancelling ──> cancelled (or succeeded/failed: the commit won the race)
      │  └── pausing ──> paused ──> queued
      └──> paused | cancelled

The Lua scripts of the ledger are given this very table, so nothing else knows the rules. The one
exception is `Ledger.settle`, which copies an outcome already committed to the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED}),
        JobState.RUNNING: frozenset(
            {
                JobState.QUEUED,
                JobState.PAUSING,
                JobState.CANCELLING,
                JobState.SUCCEEDED,
                JobState.FAILED,
            }
        ),
        JobState.PAUSING: frozenset(
            {
                JobState.RUNNING,
                JobState.PAUSED,
                JobState.CANCELLING,
                JobState.SUCCEEDED,
                JobState.FAILED,
            }
        ),
        JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
        JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)

TERMINAL: frozenset[JobState] = frozenset(
    state for state, successors in TRANSITIONS.items() if not successors
)

# States in which a worker holds the job's lease.
HELD: frozenset[JobState] = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
