"""The data that the ledger keeps and returns about jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.jobs.state import JobState
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.storage.uri import canonical

# From the highest to the lowest.
Priority = Literal["high", "normal", "low"]


class Signal(StrEnum):
    """What the worker is to do, as the answer to a heartbeat."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    PAUSE = "pause"
    LOST = "lost"


def place_of(uri: str) -> str:
    """An output as the ledger compares it: two overlap if one begins with the other."""
    return canonical(uri).rstrip("/") + "/"


class PredictedTime(BaseModel):
    """How long a job will take with one worker of a class: most likely, and a range."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: float
    least_seconds: float
    most_seconds: float


Times = dict[str, PredictedTime]
"""By class of workers (see `api.worker_classes`)."""


class NewJob(BaseModel):
    """A job to enter in the ledger.

    Attributes:
        created_at: Unix seconds, as journalled.
        run: 1, or more after retries (see `sequel`).
        deadline_seconds: Time that the run may take from its first start; None for no limit.
        traceparent: The span that submitted it (see `tracing`).
        scratch_bytes: Estimated space for temporary files that a worker needs; 0 if unknown.
        output: Where it publishes (see `place_of`); "" if unknown.
        extends: The job whose measurements it goes on from, if any (see `api.extension`).
        workspace_of: The job whose workspace it works in, if not in its own.
        predicted: How long it will take on each class of workers, when it was submitted.
        fence: The fence of the first claim is higher than this: 0 for a new job, the present
            microsecond for one that is restored from the journal (see `rebuild`).
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
    output: str = ""
    extends: str | None = None
    workspace_of: str | None = None
    predicted: Times = Field(default_factory=dict)
    fence: int = 0


class JobRecord(BaseModel):
    """A job as the ledger has it. Times are unix seconds.

    Attributes:
        revision: Raised by every visible change; part of the job's ETag.
        fence: Unique number of the newest claim. Writes with another number are refused.
        run: 1, and one more with each retry. An outcome counts for its run only.
        attempt: Claims in this run that count against `max_attempts` (a drained one does not).
        workers: How many workers serve it now, including the one that holds its lease.
        deadline_at: When the run fails unless it has ended. None before its first start, or if the
            job has no deadline.
        plan: How the next attempt differs from the spec after memory ran out
            (`micro_batch_tokens`), and how many attempts in a row have stalled at which place
            (`stalls`, `stalled_at`).
        stop_requested: What the worker is to do at its next safe point.
        error: The failure. While the job is queued: the last retryable error, or why free workers
            do not claim it.
    """

    # A newer release and the scripts may keep other fields.
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
    extends: str | None = None
    workspace_of: str | None = None
    predicted: Times = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    priority: Priority = "normal"
    fingerprint: str
    spec: dict[str, Any]

    @property
    def workspace_id(self) -> str:
        """The job whose workspace it works in, perhaps itself."""
        return self.workspace_of or self.id


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job, until the lease expires or a newer fence exists.

    Attributes:
        run: The run for which this claim may commit an outcome.
        seconds_left: Time until the run's deadline, by the ledger's clock; None if it has none.
    """

    job_id: str
    fence: int
    attempt: int
    run: int = 1
    seconds_left: float | None = field(default=None, compare=False)


class Refusal(StrEnum):
    """Why a claim got no job."""

    # No job is queued, other workers were faster, or all queued jobs rest after a failure.
    NOTHING = "nothing"
    # All queued jobs are of tenants at their limit of running jobs.
    BLOCKED = "blocked"
    # The worker has too little space for every queued job.
    NO_ROOM = "no_room"


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The answer to a claim.

    Attributes:
        claim: The claim, or why there is none.
        record: The job that was claimed.
        too_large: Some of the jobs that were skipped because this worker has too little space, if
            they do not have that noted yet.
    """

    claim: Claim | Refusal
    record: JobRecord | None = None
    too_large: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a job's log.

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
        type: "state", "progress", "workers" or "layers". There may be others later.
        data: For "state": state, run, attempt, reason, error. For "progress": the progress report.
            For "workers": workers, how many serve the job now. For "layers": results for some
            layers, in columns (see `strucprune_core.run.layer_updates`).
    """

    id: str
    at: float
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Queue:
    """How many jobs of one priority are queued, and how long the oldest has been."""

    jobs: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a queued job stands.

    Attributes:
        waits_for: "turn": for a worker; "limit": its tenant has as many jobs running as it may, or
            will have before this one's turn; "rest": it failed for now, and rests a while.
        workers: How many workers are there, whatever they are at.
        ahead: About how many jobs are claimed before it, of all tenants; None while it rests.
    """

    waits_for: Literal["turn", "limit", "rest"]
    workers: int
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a worker holds, as far as it says when the worker will be free.

    Attributes:
        predicted: As of `NewJob`.
        progress: Its last report of progress.
    """

    predicted: Times
    progress: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What decides when a queued job starts; of jobs of any tenant, so not for tenants to see.

    Attributes:
        place: Where the job stands.
        waiting: Predicted times of other queued jobs.
        held: Jobs that workers hold.
    """

    place: QueuePlace
    waiting: Sequence[Times]
    held: Sequence[HeldJob]


class WorkerRecord(BaseModel):
    """A worker as it shows itself. Times are unix seconds, by the ledger's clock.

    Attributes:
        name: Host and process id.
        pool: Which pool of the deployment it belongs to; "" if none was named.
        rates: How fast its device was measured to be when it started; None if it could not.
        read_bytes_per_second: How fast its last job read its model; None before its first.
        device: What its last solve computed with, as PyTorch names it; None before its first.
        threads: Threads of that solve.
        job_id: The job at hand.
        part: Whether it leads the job ("lead") or helps with it ("help").
        unit: The unit of the job at hand (see `strucprune_core.plan.graph`).
    """

    # Another release may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    host: str = ""
    pool: str = ""
    version: str | None = None
    started_at: float
    seen_at: float
    rates: DeviceRates | None = None
    read_bytes_per_second: float | None = None
    device: str | None = None
    threads: int | None = None
    job_id: str | None = None
    part: Literal["lead", "help"] | None = None
    phase: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs, newest first; `next_cursor` is None on the last page."""

    jobs: list[JobRecord]
    next_cursor: str | None
