"""What the ledger keeps and hands out about a job: plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.jobs.state import JobState

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
        fence: Fence that the first claim goes beyond. 0 for a new job; a job restored from the
            journal starts above every fence handed out before (see `rebuild`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    tenant: str
    fingerprint: str
    created_at: float
    spec: dict[str, Any]
    priority: Priority = "normal"
    max_attempts: int = 3
    labels: dict[str, str] = Field(default_factory=dict)
    fence: int = 0


class JobRecord(BaseModel):
    """A job as the ledger knows it. Times are unix seconds.

    Attributes:
        revision: Raised by every visible change; the ETag of the job.
        fence: Number of the newest claim; writes with an older one are refused.
        attempt: Claims that count against `max_attempts` (a drained one does not).
        stop_requested: What the worker is asked to do at its next safe point.
        error: The failure, or the last retryable error while the job waits for its next attempt.
    """

    # What a newer release or the scripts keep beside these fields is not ours to judge.
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    state: JobState
    revision: int
    fence: int
    attempt: int
    max_attempts: int
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    lease_owner: str | None = None
    lease_expires_at: float | None = None
    stop_requested: Literal["cancel", "pause"] | None = None
    progress: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    priority: Priority = "normal"
    fingerprint: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job, until the lease expires or a newer fence exists."""

    job_id: str
    fence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        id: Position in the job's stream; pass it as `after` to go on from here.
        at: Unix seconds.
        type: "state" or "progress".
        data: For "state": state, attempt, reason, error. For "progress": the progress report.
    """

    id: str
    at: float
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs, newest first; `next_cursor` is None on the last page."""

    jobs: list[JobRecord]
    next_cursor: str | None
