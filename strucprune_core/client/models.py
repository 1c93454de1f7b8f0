"""Answers of the service, as the client returns them. Fields of newer releases are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# A job in one of these states stays in it.
ENDED = frozenset({"succeeded", "failed", "cancelled"})


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Answer):
    """How far a job is; `fraction` is the share of the whole job that is done, in [0, 1]."""

    phase: str
    layers_done: int
    layers_total: int
    fraction: float
    eta_seconds: float | None = None
    phases: dict[str, tuple[int, int]] = {}
    unit: str | None = None
    title: str = ""
    unit_title: str | None = None


class PredictedTime(_Answer):
    """How long a job takes with one worker of a class: most likely, and a range, in seconds."""

    seconds: float
    least_seconds: float
    most_seconds: float


class Start(_Answer):
    """Seconds from now, between which a job probably starts."""

    least_seconds: float
    most_seconds: float


class Cost(_Answer):
    """What a job's time on a worker costs."""

    least: float
    most: float
    currency: str = ""


class ClassTime(PredictedTime):
    """A job's time on a class of workers.

    Attributes:
        worker_class: The workers' pool, or their device.
        workers: How many of them there are, busy or not.
        phases: The most likely seconds of each phase.
        cost: None where the operator has named no price.
    """

    worker_class: str
    workers: int
    device: str = ""
    threads: int = 1
    phases: dict[str, float] = Field(default_factory=dict)
    cost: Cost | None = None


class QueuePlace(_Answer):
    """Where a queued job stands: an estimate.

    Attributes:
        position: 1 is next; None while the job rests after a failed attempt.
        waits_for: "turn", "limit" (of running jobs) or "rest".
        workers: How many workers there are, busy or not.
        starts_in: When it probably starts; None where that cannot be told.
    """

    position: int | None = None
    waits_for: str
    workers: int
    starts_in: Start | None = None


class JobError(_Answer):
    """Why a job failed, or why its last attempt did."""

    code: str
    message: str
    field: str | None = None
    remedy: str | None = None
    retryable: bool = False
    phase: str | None = None
    layer: int | None = None


class Job(_Answer):
    """A pruning job.

    Attributes:
        state: queued, running, pausing, paused, cancelling, succeeded, failed or cancelled.
        run: 1, and one more with each retry.
        attempt: Attempts begun in this run.
        workers: How many workers serve it now.
        queue: Where it stands while it is queued; only of a job that was asked for by its id.
        extends: The job whose measurements this one has taken over, if any.
        predicted: How long it was predicted to take when it was submitted, by class of workers.
        spec: The job specification with all defaults filled in.
        summary: Once succeeded: parameters, bytes and perplexity before and after, and so on.
        etag: Version of the job, which changes whenever anything here changes.
    """

    id: str
    state: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    run: int = 1
    attempt: int = 0
    workers: int = 0
    queue: QueuePlace | None = None
    progress: Progress | None = None
    error: JobError | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    extends: str | None = None
    predicted: dict[str, PredictedTime] = Field(default_factory=dict)
    spec: dict[str, Any]
    summary: dict[str, Any] | None = None
    etag: str | None = None

    @property
    def name(self) -> str | None:
        """What people call it, as its specification says."""
        name = self.spec.get("name")
        return name if isinstance(name, str) else None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED


class JobPage(_Answer):
    """One page of a list."""

    data: list[Job]
    next_cursor: str | None = None


class Event(_Answer):
    """Something that happened to a job.

    Attributes:
        type: "state", "progress", "workers", "layers", or a type of a newer service.
        title: What happened, for people.
    """

    id: str
    at: datetime
    type: str
    title: str = ""
    data: dict[str, Any]

    @property
    def ends_run(self) -> bool:
        """Whether a run of the job ended with it; another one may follow, after a retry."""
        return self.type == "state" and self.data.get("state") in ENDED


class EventPage(_Answer):
    """Events, oldest first."""

    data: list[Event]


class LogLine(_Answer):
    """A line that the job's process has logged; `at` by the worker's clock."""

    id: str
    at: datetime
    run: int
    attempt: int
    level: str
    message: str


class LogPage(_Answer):
    """Log lines, oldest first."""

    data: list[LogLine]
    next_after: str


class FieldError(_Answer):
    """One thing that is wrong: a JSON pointer into the job, or a parameter, and what to do.

    Attributes:
        mends: Changes of one field each (`field`, a dotted path, and `value`; None leaves it out),
            of which any cures it.
    """

    pointer: str | None = None
    parameter: str | None = None
    code: str
    detail: str
    mends: list[dict[str, Any]] = Field(default_factory=list)


class Validation(_Answer):
    """Whether a job would be accepted.

    Attributes:
        estimate: Parameters, bytes, memory and FLOPs; None if it is not valid.
        runtimes: Which runtimes will load the result; None if it is not valid.
        times: How long it takes, for each class of workers that can run it.
        starts_in: When it would start now; None where that cannot be told.
    """

    valid: bool
    issues: list[FieldError]
    estimate: dict[str, Any] | None = None
    runtimes: list[dict[str, Any]] | None = None
    times: list[ClassTime] = Field(default_factory=list)
    starts_in: Start | None = None


class Artifact(_Answer):
    """One file of a finished job.

    Attributes:
        name: Path below the output prefix.
        sha256: Hex digest.
        url: Short-lived download URL, if it was asked for and the store can lend one.
    """

    name: str
    bytes: int
    sha256: str
    uri: str
    url: str | None = None


class ArtifactList(_Answer):
    """Files of a finished job, in pages; `next_after` is None on the last one."""

    data: list[Artifact]
    next_after: str | None = None


class ModelList(_Answer):
    """URIs of models; `complete` says whether these are all."""

    data: list[str]
    complete: bool = True


class Quota(_Answer):
    """The limits of a tenant (None: no limit), and what it has of them, each by its name."""

    limits: dict[str, int | float | str | None]
    use: dict[str, int]


class Worker(_Answer):
    """A worker.

    Attributes:
        pool: Which pool of the deployment it belongs to.
        rates: How fast its device was measured to be when it started; None if it could not.
        read_bytes_per_second: How fast its last job read its model; None before its first.
        device: What its last solve computed with; None before its first.
        job_id: The job at hand, of any tenant.
        part: Whether it leads that job ("lead") or helps with it ("help").
        unit: The unit of work at hand.
    """

    name: str
    host: str = ""
    pool: str = ""
    version: str | None = None
    started_at: datetime | None = None
    last_heartbeat_at: datetime | None = None
    rates: dict[str, Any] | None = None
    read_bytes_per_second: float | None = None
    device: str | None = None
    threads: int | None = None
    job_id: str | None = None
    part: str | None = None
    phase: str | None = None
    unit: str | None = None


class WorkerList(_Answer):
    """All workers."""

    data: list[Worker]


class Problem(_Answer):
    """Problem details (RFC 9457); also made up for answers that are none, a proxy's page, say."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = "unknown"
    request_id: str | None = None
    errors: list[FieldError] = Field(default_factory=list)
