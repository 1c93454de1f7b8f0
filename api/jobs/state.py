"""The states of a job and the transitions between them, as data.

    queued ──> running ──> succeeded | failed
      │  ^       │  ^ │
      │  │       v  │ └──> cancelling ──> cancelled (or succeeded/failed: the commit won the race)
      │  └── pausing ──> paused ──> queued
      └──> paused | cancelled

    queued | paused ──> failed      the deadline has passed, and no worker is there to notice
    failed | cancelled ──> queued   a retry: a new *run* of the job (see `sequel`)

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
        JobState.QUEUED: frozenset(
            {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}
        ),
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
        JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED, JobState.FAILED}),
        JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELLED: frozenset({JobState.QUEUED}),
    }
)

# Ends, which are journalled. Only a retry leads on from here, and not from success.
TERMINAL: frozenset[JobState] = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

# States in which a worker holds the job's lease.
HELD: frozenset[JobState] = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
