"""The states of a job and the transitions between them, as data.

    queued ──> running ──> succeeded | failed
      │  ^       │  ^ │
      │  │       v  │ └──> cancelling ──> cancelled (or succeeded/failed: the outcome came first)
      │  └── pausing ──> paused ──> queued
      └──> paused | cancelled

    queued | paused ──> failed      the deadline has passed while no worker held the job
    failed | cancelled ──> queued   a retry: a new *run* of the job (see `sequel`)

The Lua scripts of the ledger use this table too, so these rules exist only once. The one exception
is `Ledger.settle`, which copies an outcome that the journal has.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """The state of a job."""

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

# States that end a run, which are journalled. Only a retry leaves them, and none leaves success.
TERMINAL: frozenset[JobState] = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

# States in which a worker holds the job's lease.
HELD: frozenset[JobState] = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
