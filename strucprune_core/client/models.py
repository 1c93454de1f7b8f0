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
    progress: Progress | None = None
    error: JobError | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    spec: dict[str, Any]
    summary: dict[str, Any] | None = None
    etag: str | None = None

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
    """

    id: str
    at: datetime
    type: str
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
    """One thing that is wrong: a JSON pointer into the job, or a parameter, and what to do."""

    pointer: str | None = None
    parameter: str | None = None
    code: str
    detail: str


class Validation(_Answer):
    """Whether a job would be accepted.

    Attributes:
        estimate: Parameters, bytes, memory and FLOPs; None if it is not valid.
        runtimes: Which runtimes will load the result; None if it is not valid.
    """

    valid: bool
    issues: list[FieldError]
    estimate: dict[str, Any] | None = None
    runtimes: list[dict[str, Any]] | None = None


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


class Problem(_Answer):
    """Problem details (RFC 9457); also made up for answers that are none, a proxy's page, say."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = "unknown"
    request_id: str | None = None
    errors: list[FieldError] = Field(default_factory=list)
