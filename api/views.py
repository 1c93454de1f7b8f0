"""The JSON bodies of the API's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from api.event_titles import event_title
from api.expected_start import expected_start
from api.jobs.limits import TenantLimits
from api.jobs.record import (
    JobEvent,
    JobRecord,
    LogLine,
    Outlook,
    PredictedTime,
    WorkerRecord,
)
from api.jobs.state import JobState
from api.problems import FieldError
from api.settings import Settings
from api.worker_classes import WorkerClass
from strucprune_core.export.runtimes import Runtime, RuntimeSupport
from strucprune_core.plan.estimate import Estimate
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.seconds import TimeEstimate
from strucprune_core.plan.titles import phase_title, unit_title
from strucprune_core.run.progress import Phase
from strucprune_core.spec import JobSpec

# Specifications cached, of some kilobytes each.
_SPECS_KEPT = 1024


class ProgressView(BaseModel):
    """Progress of a job."""

    phase: Phase
    title: str = Field(description="What is done in this phase.")
    layers_done: int
    layers_total: int
    fraction: float = Field(description="Share of the whole job that is done, in [0, 1].")
    eta_seconds: float | None = None
    phases: dict[Phase, tuple[int, int]] = Field(
        default_factory=dict,
        description="Of each phase that the job has, steps that are finished, and all. Phases "
        "overlap: the dense model is evaluated first, the pruned one last.",
    )
    unit: str | None = Field(
        default=None, description="The unit of work that is computed now, by its stable name."
    )
    unit_title: str | None = Field(default=None, description="What that unit does.")


class StartView(BaseModel):
    """Seconds from now, between which a job probably starts."""

    least_seconds: float
    most_seconds: float


class CostView(BaseModel):
    """What a job's time on a worker costs, by the operator's prices."""

    least: float
    most: float
    currency: str


class TimeView(BaseModel):
    """How long a job takes on one class of workers, with one worker that does nothing else."""

    worker_class: str = Field(description="The workers' pool, or their device.")
    workers: int = Field(description="How many of them are there, whatever they are at.")
    seconds: float = Field(description="What is most likely.")
    least_seconds: float
    most_seconds: float
    phases: dict[Phase, float] = Field(description="The most likely seconds of each phase.")
    device: str
    threads: int
    cost: CostView | None = Field(
        default=None, description="Null where the operator has named no price."
    )


class QueueView(BaseModel):
    """Where a queued job stands: an estimate."""

    position: int | None = Field(
        description="1 is next. About how many jobs of all organisations are started up to this "
        "one, as if none came, ended or changed meanwhile. Null while the job rests."
    )
    waits_for: Literal["turn", "limit", "rest"] = Field(
        description="`turn`: for a worker. `limit`: your organisation has, or will have before, as "
        "many jobs running as it may. `rest`: its last attempt failed for now, and another follows "
        "soon."
    )
    workers: int = Field(description="Workers that are there, whatever they are at.")
    starts_in: StartView | None = Field(
        default=None,
        description="When the job probably starts, if all stays as it is; null where that cannot "
        "be told.",
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
    queue: QueueView | None = Field(
        default=None,
        description="While the job is queued, where it stands. Only in the answer for one job, and "
        "no part of its ETag.",
    )
    predicted: dict[str, PredictedTime] = Field(
        default_factory=dict,
        description="How long the job was predicted to take when it was submitted, by class of "
        "workers: with one worker that does nothing else.",
    )
    progress: ProgressView | None
    error: JobErrorView | None
    labels: dict[str, str]
    extends: str | None = Field(
        default=None, description="The job whose measurements this one has taken over, if any."
    )
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
    title: str = Field(description="What happened, for people. Texts may change.")
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
    times: list[TimeView] = Field(
        default_factory=list,
        description="How long the job takes, for each class of workers that can run it.",
    )
    starts_in: StartView | None = Field(
        default=None,
        description="When the job would start if it were submitted now; null where that cannot be "
        "told, or if it is not valid.",
    )


def time_views(
    times: Mapping[str, TimeEstimate], classes: Iterable[WorkerClass], settings: Settings
) -> list[TimeView]:
    """Times on classes of workers, those of which most are there first."""
    return [
        TimeView(
            worker_class=each.name,
            workers=each.workers,
            cost=_cost(times[each.name], each, settings),
            **times[each.name].model_dump(exclude={"workers"}),
        )
        for each in classes
        if each.name in times
    ]


def _cost(time: TimeEstimate, on: WorkerClass, settings: Settings) -> CostView | None:
    price = settings.worker_prices.get(on.name, settings.worker_prices.get(on.pool))
    if price is None:
        return None
    hours = (time.least_seconds / 3600, time.most_seconds / 3600)
    least, most = (round(price * each, 4) for each in hours)
    return CostView(least=least, most=most, currency=settings.currency)


def start_view(outlook: Outlook | None) -> StartView | None:
    """When a job starts as its owner sees it."""
    start = expected_start(outlook) if outlook is not None else None
    if start is None:
        return None
    return StartView(least_seconds=start.least_seconds, most_seconds=start.most_seconds)


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


class ModelList(BaseModel):
    """URIs of models."""

    data: list[str]
    complete: bool = Field(
        description="Whether these are all. If not, there are more, or more objects than are "
        "looked at: a longer prefix finds the others."
    )


class WorkerView(BaseModel):
    """A worker."""

    name: str = Field(description="Host and process id.")
    host: str
    pool: str = Field(description="Its pool, as `STRUCPRUNE_POOL` says; may be empty.")
    version: str | None
    started_at: datetime | None
    last_heartbeat_at: datetime | None
    rates: DeviceRates | None = Field(
        description="How fast its device was measured to be when it started; null if it could not."
    )
    read_bytes_per_second: float | None = Field(
        description="How fast its last job read its model from storage; null before its first."
    )
    device: str | None = Field(
        description="What its last solve computed with; null before its first."
    )
    threads: int | None = Field(description="Threads of that solve.")
    job_id: str | None = Field(description="The job at hand.")
    part: Literal["lead", "help"] | None = Field(
        description="Whether it leads that job or helps with it."
    )
    phase: str | None
    unit: str | None = Field(description="The unit of work at hand.")


class WorkerList(BaseModel):
    """The workers that have spoken within the last minute, by name."""

    data: list[WorkerView]


class QuotaUse(BaseModel):
    """What your organisation has at present."""

    open_jobs: int = Field(description="Jobs that have not ended.")
    running_jobs: int = Field(description="Jobs that workers hold.")
    kept_jobs: int = Field(description="Jobs in the list; older ones are in the archive.")
    kept_bytes: int = Field(description="Memory that these jobs take.")


class Quota(BaseModel):
    """The limits of your organisation, and what it has of them."""

    limits: TenantLimits = Field(description="Null means no limit.")
    use: QuotaUse


class Limits(BaseModel):
    """Limits of this deployment."""

    request_bytes: int
    page_size: int
    wait_seconds: int
    gpu_memory_bytes: int | None = Field(
        description="Device memory of jobs that ask for `cuda` and name no limit."
    )


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
    defaults: dict[str, Any] = Field(
        description="Defaults of a job's fields, by dotted path; of some it depends on others."
    )
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


def job_view(record: JobRecord, outlook: Outlook | None = None) -> JobView:
    """A record as its owner sees it, with its place in the queue if that was asked for."""
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
            "queue": outlook and queue_view(outlook),
            "predicted": record.predicted,
            "progress": record.progress and _progress(record.progress),
            "error": record.error,
            "labels": record.labels,
            "extends": record.extends,
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


def _progress(progress: Mapping[str, Any]) -> dict[str, Any]:
    unit = progress.get("unit")
    titles = {"title": phase_title(progress["phase"]), "unit_title": unit and unit_title(unit)}
    return {**progress, **titles}


def queue_view(outlook: Outlook) -> QueueView:
    """A job's place in the queue as its owner sees it."""
    place = outlook.place
    return QueueView(
        position=None if place.ahead is None else place.ahead + 1,
        waits_for=place.waits_for,
        workers=place.workers,
        starts_in=start_view(outlook),
    )


def worker_view(worker: WorkerRecord) -> WorkerView:
    """A worker as operators see it."""
    about = worker.model_dump(exclude={"started_at", "seen_at"})
    return WorkerView(
        **about, started_at=_utc(worker.started_at), last_heartbeat_at=_utc(worker.seen_at)
    )


def event_view(event: JobEvent) -> EventView:
    """An event as the job's owner sees it."""
    at = datetime.fromtimestamp(event.at, UTC)
    title = event_title(event.type, event.data)
    return EventView(id=event.id, at=at, type=event.type, title=title, data=event.data)


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
