"""What the ledger keeps and hands out about a job: plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.jobs.state import JobState

# From the highest to the lowest.
Priority = Literal["high", "normal", "low"]


class Signal(StrEnum):
    """What a heartbeat tells the worker to do."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    PAUSE = "pause"
    LOST = "lost"


class NewJob(BaseModel):
    """A job to enter in the ledger.

    Attributes:
        created_at: Unix seconds, as journalled.
        run: 1, or more after retries (see `sequel`).
        deadline_seconds: Time that the run may take from its first start; None for no limit.
        traceparent: The span that submitted it (see `tracing`).
        scratch_bytes: Room for temporary files that a worker must have for it, as estimated; 0 if
            that is not known.
        fence: Fence that the first claim goes beyond: 0 for a new job, the present microsecond for
            one that is restored from the journal (see `rebuild`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    tenant: str
    fingerprint: str
    created_at: float
    spec: dict[str, Any]
    priority: Priority = "normal"
    max_attempts: int = 3
    max_workers: int = 1
    labels: dict[str, str] = Field(default_factory=dict)
    run: int = 1
    deadline_seconds: float | None = None
    traceparent: str | None = None
    scratch_bytes: int = 0
    fence: int = 0


class JobRecord(BaseModel):
    """A job as the ledger knows it. Times are unix seconds.

    Attributes:
        revision: Raised by every visible change; the ETag of the job.
        fence: Number of the newest claim, that of no other; writes with another are refused.
        run: 1, and one more with each retry. What a worker commits counts for its run only.
        attempt: Claims in this run that count against `max_attempts` (a drained one does not).
        workers: How many serve it now, with the one that holds its lease.
        deadline_at: When the run fails unless it has ended; None before its first start, or if the
            job has no deadline.
        plan: What the next attempt does otherwise than the spec says, after memory ran out
            (`micro_batch_tokens`), and how often attempts in a row have stalled at which place
            (`stalls`, `stalled_at`).
        stop_requested: What the worker is asked to do at its next safe point.
        error: The failure; while the job waits for its next attempt, the last retryable error, or
            why free workers do not take it.
    """

    # What a newer release or the scripts keep beside these fields is not ours to judge.
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    state: JobState
    revision: int
    fence: int
    run: int = 1
    attempt: int
    max_attempts: int
    max_workers: int = 1
    workers: int = 0
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    deadline_at: float | None = None
    lease_owner: str | None = None
    lease_expires_at: float | None = None
    stop_requested: Literal["cancel", "pause"] | None = None
    progress: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    traceparent: str | None = None
    scratch_bytes: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    priority: Priority = "normal"
    fingerprint: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job, until the lease expires or a newer fence exists.

    Attributes:
        run: The run that this claim may commit an outcome for.
        seconds_left: Until the run's deadline, by the ledger's clock; None if it has none.
    """

    job_id: str
    fence: int
    attempt: int
    run: int = 1
    seconds_left: float | None = field(default=None, compare=False)


class Refusal(StrEnum):
    """Why a worker gets no job."""

    # None waits: other workers were faster, or those that wait rest after a failure.
    NOTHING = "nothing"
    # The tenants whose jobs wait have as many running as they may.
    BLOCKED = "blocked"
    # The worker has no scratch for those that wait.
    NO_ROOM = "no_room"


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The answer to a worker that asks for the next job.

    Attributes:
        claim: The claim, or why there is none.
        record: The job that was claimed.
        too_large: Some of the jobs that came before and that this worker has no room for, if they
            do not say so yet.
    """

    claim: Claim | Refusal
    record: JobRecord | None = None
    too_large: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a solve has logged.

    Attributes:
        id: Position in the job's log; pass it as `after` to go on from here.
        at: Unix seconds, by the worker's clock.
        run: The run that the attempt belongs to.
        attempt: The attempt that logged it.
        level: "INFO", "WARNING", …
    """

    id: str
    at: float
    run: int
    attempt: int
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        id: Position in the job's stream; pass it as `after` to go on from here.
        at: Unix seconds.
        type: "state", "progress", "workers" or "layers"; there may be others one day.
        data: For "state": state, run, attempt, reason, error. For "progress": the progress report.
            For "workers": workers, how many serve the job now. For "layers": what was found out
            about some layers, in columns (see `strucprune_core.run.layer_updates`).
    """

    id: str
    at: float
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Queue:
    """Jobs of one priority that wait for a worker, and since when the first one does."""

    jobs: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs, newest first; `next_cursor` is None on the last page."""

    jobs: list[JobRecord]
    next_cursor: str | None
