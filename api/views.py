"""The JSON bodies of the API's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from api.jobs.record import JobEvent, JobRecord, LogLine
from api.jobs.state import JobState
from api.problems import FieldError
from strucprune_core.export.runtimes import Runtime, RuntimeSupport
from strucprune_core.plan.estimate import Estimate
from strucprune_core.run.progress import Phase
from strucprune_core.spec import JobSpec

# Specifications cached, of some kilobytes each.
_SPECS_KEPT = 1024


class ProgressView(BaseModel):
    """Progress of a job."""

    phase: Phase
    layers_done: int
    layers_total: int
    fraction: float = Field(description="Share of the whole job that is done, in [0, 1].")
    eta_seconds: float | None = None
    phases: dict[Phase, tuple[int, int]] = Field(
        default_factory=dict,
        description="Of each phase that the job has, steps that are finished, and all. Phases "
        "overlap: the dense model is evaluated first, the pruned one last.",
    )


class JobErrorView(BaseModel):
    """Why a job failed, or why its last attempt did."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    retryable: bool = False
    phase: str | None = None
    layer: int | None = None


class JobLinks(BaseModel):
    """Paths of a job's resources."""

    self: str
    events: str
    report: str
    artifacts: str
    logs: str
    cancel: str
    retry: str


class JobView(BaseModel):
    """A pruning job."""

    id: str
    state: JobState
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    run: int = Field(description="1, and one more with each retry.")
    attempt: int = Field(
        description="Attempts begun in this run; interruptions by maintenance do not count."
    )
    workers: int = Field(
        description="Workers that serve the job now. More than one only if "
        "`runtime.max_workers` allows it."
    )
    progress: ProgressView | None
    error: JobErrorView | None
    labels: dict[str, str]
    spec: JobSpec
    summary: dict[str, Any] | None = Field(
        description="Set once the job succeeded: parameters, bytes and perplexity before and "
        "after, seconds, peak memory, and the first of the report's warnings."
    )
    links: JobLinks


class JobPage(BaseModel):
    """A page of jobs, newest first. It may be short, even empty, and still have a successor."""

    data: list[JobView]
    next_cursor: str | None


class EventView(BaseModel):
    """Something that happened to a job."""

    id: str = Field(description="Pass it as `after` or `Last-Event-ID` to go on from here.")
    at: datetime
    type: str = Field(description="`state`, `progress`, `workers` or `layers`. Ignore other types.")
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events, oldest first."""

    data: list[EventView]
    next_after: str = Field(description="Pass it as `after` to get what comes next.")


class LogLineView(BaseModel):
    """A line of the job's log."""

    id: str = Field(description="Pass it as `after` to go on from here.")
    at: datetime
    run: int
    attempt: int
    level: str
    message: str


class LogPage(BaseModel):
    """Log lines, oldest first."""

    data: list[LogLineView]
    next_after: str = Field(description="Pass it as `after` to get what comes next.")


class ValidationView(BaseModel):
    """Whether a job would be accepted, and what it would cost."""

    valid: bool
    issues: list[FieldError]
    estimate: Estimate | None
    runtimes: list[RuntimeSupport] | None = Field(
        default=None, description="Which runtimes will load the result; null if not valid."
    )


class ArtifactView(BaseModel):
    """One file of the pruned checkpoint."""

    name: str
    bytes: int
    sha256: str
    uri: str
    url: str | None = Field(default=None, description="Short-lived download URL, if asked for.")


class ArtifactList(BaseModel):
    """Files of a finished job, in pages."""

    data: list[ArtifactView]
    next_after: str | None = Field(
        default=None, description="Pass it as `after` for the next page; null at the end."
    )
    expires_seconds: int | None = Field(
        default=None, description="How long the URLs work, if there are any."
    )


class Limits(BaseModel):
    """Limits of this deployment."""

    request_bytes: int
    page_size: int
    wait_seconds: int


class Capabilities(BaseModel):
    """What this deployment can do."""

    version: str
    architectures: list[str]
    structures: list[str]
    allocations: list[str]
    energies: list[str]
    solvers: list[str]
    layouts: list[str]
    exports: list[str]
    runtimes: list[Runtime]
    device_tables: list[str]
    limits: Limits


class Health(BaseModel):
    """The process or the service works."""

    status: str = "ok"


@lru_cache(_SPECS_KEPT)
def _spec(text: str) -> JobSpec:
    """A job's specification. Cached, since it never changes and is slow to validate."""
    return JobSpec.model_validate_json(text)


def answer(
    view: BaseModel, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """A view as a response. The framework would validate and convert it once more."""
    return Response(
        view.model_dump_json(), status, dict(headers or {}), media_type="application/json"
    )


def job_view(record: JobRecord) -> JobView:
    """A record as its owner sees it."""
    here = f"/v1/pruning-jobs/{record.id}"
    return JobView.model_validate(
        {
            "id": record.id,
            "state": record.state,
            "created_at": _utc(record.created_at),
            "started_at": _utc(record.started_at),
            "finished_at": _utc(record.finished_at),
            "run": record.run,
            "attempt": record.attempt,
            "workers": record.workers,
            "progress": record.progress,
            "error": record.error,
            "labels": record.labels,
            "spec": _spec(json.dumps(record.spec)),
            "summary": record.summary,
            "links": {
                "self": here,
                "events": f"{here}/events",
                "report": f"{here}/report",
                "artifacts": f"{here}/artifacts",
                "logs": f"{here}/logs",
                "cancel": f"{here}/cancel",
                "retry": f"{here}/retry",
            },
        }
    )


def event_view(event: JobEvent) -> EventView:
    """An event as the job's owner sees it."""
    at = datetime.fromtimestamp(event.at, UTC)
    return EventView(id=event.id, at=at, type=event.type, data=event.data)


def log_line_view(line: LogLine) -> LogLineView:
    """A log line as the job's owner sees it."""
    return LogLineView(
        id=line.id,
        at=datetime.fromtimestamp(line.at, UTC),
        run=line.run,
        attempt=line.attempt,
        level=line.level,
        message=line.message,
    )


def etag(record: JobRecord) -> str:
    """The ETag of a job, which changes whenever its view does.

    It contains the fence, because a job restored from the journal counts revisions anew.
    """
    return f'"{record.fence}.{record.revision}"'


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
