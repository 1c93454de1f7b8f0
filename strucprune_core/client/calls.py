"""The client's protocol without its sockets: requests, retries and waiting, for both clients.

A *flow* is a generator that yields what it needs done, a `Call` or a `Sleep`, is sent the response
of a call (or the exception it ended with), and returns the result. The sync and the async client
only differ in how they do these two things, so what they do is written once, here.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeGuard, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from strucprune_core.client.errors import JobNotFound, Unreachable, WaitTimeout, from_problem
from strucprune_core.client.models import (
    Artifact,
    ArtifactList,
    Event,
    EventPage,
    Job,
    JobPage,
    LogPage,
    Problem,
    Validation,
)
from strucprune_core.spec import JobSpec

JOBS = "/v1/pruning-jobs"
# One long-poll; the service holds it a minute at most, proxies often for less.
WAIT_SECONDS = 25
# Beyond what the service itself takes: connections, queues, proxies.
READ_SECONDS = 30.0
CONNECT_SECONDS = 10.0
# The service says something on a stream every 15 s.
STREAM_SILENCE_SECONDS = 45.0
MAX_PAGE_SIZE = 100
LOG_PAGE_SIZE = 1000
_FIRST_DELAY_SECONDS = 0.25
_MAX_DELAY_SECONDS = 8.0
# A wait longer than this that a server asks for is taken for a mistake of its.
_MAX_RETRY_AFTER_SECONDS = 120.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})

Spec = JobSpec | Mapping[str, Any]
_A = TypeVar("_A", bound=BaseModel)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        retryable: Whether it may be sent again when its answer got lost.
        wait_seconds: How long the service may hold the answer.
        gone_is_done: Whether 404 means, once it has been sent before, that it did its work then.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    retryable: bool = True
    wait_seconds: float = 0.0
    gone_is_done: bool = False

    @property
    def timeout(self) -> httpx.Timeout:
        """How long to wait for the answer."""
        return httpx.Timeout(READ_SECONDS + self.wait_seconds, connect=CONNECT_SECONDS)


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause."""

    seconds: float


Answer = httpx.Response | httpx.TransportError | None
Flow = Generator[Call | Sleep, Answer, _T]


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to go on trying: `seconds` since a request was first sent."""

    seconds: float

    def send(self, call: Call) -> Flow[httpx.Response]:
        """The response of a request that succeeded, or was answered 304.

        Raises:
            Unreachable: no answer.
            ApiProblem: the service refused it.
        """
        began, attempt = time.monotonic(), 0
        while True:
            answer = yield call
            if isinstance(answer, httpx.Response) and not answer.is_error:
                return answer
            if call.gone_is_done and attempt and _is_gone(answer):
                return answer
            delay = backoff_seconds(attempt, answer)
            out_of_time = time.monotonic() + delay > began + self.seconds
            if not call.retryable or not _may_help(answer) or out_of_time:
                raise failure_of(answer)
            yield Sleep(delay)
            attempt += 1


def backoff_seconds(attempt: int, answer: Answer) -> float:
    """How long to wait before trying again: as told, else doubled each time, with jitter."""
    if isinstance(answer, httpx.Response):
        told = answer.headers.get("Retry-After", "")
        if told.isdigit():
            return min(float(told), _MAX_RETRY_AFTER_SECONDS)
    longest = min(_FIRST_DELAY_SECONDS * 2.0**attempt, _MAX_DELAY_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _may_help(answer: Answer) -> bool:
    return not isinstance(answer, httpx.Response) or answer.status_code in _RETRYABLE


def _is_gone(answer: Answer) -> TypeGuard[httpx.Response]:
    return isinstance(answer, httpx.Response) and answer.status_code == httpx.codes.NOT_FOUND


def failure_of(answer: Answer) -> Exception:
    """The error of a request that did not succeed."""
    if isinstance(answer, httpx.Response):
        return from_problem(problem_of(answer))
    # The class only: a message may quote the URL, and a URL may hold a signature.
    return Unreachable(f"The service does not answer ({type(answer).__name__})")


def problem_of(response: httpx.Response) -> Problem:
    """What a service, or whatever stands before it, answered."""
    try:
        return Problem.model_validate({**response.json(), "status": response.status_code})
    except (ValueError, TypeError):  # no JSON, no object, no problem
        return Problem(
            status=response.status_code,
            title=response.reason_phrase,
            detail=f"The service answered {response.status_code} {response.reason_phrase}.",
        )


def _parse(response: httpx.Response, kind: type[_A], **more: Any) -> _A:
    try:
        return kind.model_validate({**response.json(), **more})
    except (ValidationError, ValueError, TypeError):
        raise Unreachable("What answers at this URL is no StrucPrune service") from None


def _job(response: httpx.Response) -> Job:
    return _parse(response, Job, etag=response.headers.get("ETag"))


def submit(retries: Retries, spec: Spec, idempotency_key: str | None) -> Flow[Job]:
    """Submit a job; sending it again under the same key gives the same job."""
    headers = {"Idempotency-Key": idempotency_key or f"client-{uuid4().hex}"}
    return _job((yield from retries.send(Call("POST", JOBS, headers=headers, body=_body(spec)))))


def validate(retries: Retries, spec: Spec) -> Flow[Validation]:
    """Ask whether a job would be accepted."""
    call = Call("POST", f"{JOBS}/validate", body=_body(spec))
    return _parse((yield from retries.send(call)), Validation)


def get(retries: Retries, job_id: str) -> Flow[Job]:
    """The job as it is now."""
    return _job((yield from retries.send(Call("GET", path(job_id)))))


def control(retries: Retries, job_id: str, verb: str) -> Flow[Job]:
    """cancel, pause, resume or retry; each may be repeated."""
    return _job((yield from retries.send(Call("POST", path(job_id, verb)))))


def delete(retries: Retries, job_id: str, *, outputs: bool) -> Flow[None]:
    """Remove a job, perhaps with what it has published."""
    params = {"outputs": "true" if outputs else "false"}
    yield from retries.send(Call("DELETE", path(job_id), params, gone_is_done=True))


def page(
    retries: Retries,
    cursor: str | None,
    *,
    state: str | None,
    label: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    page_size: int,
) -> Flow[JobPage]:
    """One page of the list."""
    wanted: dict[str, str | int | None] = {
        "cursor": cursor,
        "state": state,
        "label": label,
        "created_after": created_after.isoformat() if created_after else None,
        "created_before": created_before.isoformat() if created_before else None,
        "limit": page_size,
    }
    params = {name: value for name, value in wanted.items() if value is not None}
    return _parse((yield from retries.send(Call("GET", JOBS, params=params))), JobPage)


def wait(
    retries: Retries,
    job_id: str,
    timeout_seconds: float | None,
    on_change: Callable[[Job], None] | None,
) -> Flow[Job]:
    """The job once it has ended; `on_change` sees it first as it is, then at each change."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    job = yield from get(retries, job_id)
    while True:
        if on_change is not None:
            on_change(job)
        if job.ended:
            return job
        job = yield from _changed(retries, job, deadline)


def _changed(retries: Retries, job: Job, deadline: float | None) -> Flow[Job]:
    while True:
        left = WAIT_SECONDS if deadline is None else int(deadline - time.monotonic() + 1)
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(f"The job {job.id} is still {job.state}", remedy="Wait again.")
        held = max(1, min(WAIT_SECONDS, left))
        headers = {"Prefer": f"wait={held}", "If-None-Match": job.etag or '""'}
        call = Call("GET", path(job.id), headers=headers, wait_seconds=held)
        response = yield from retries.send(call)
        if response.status_code != httpx.codes.NOT_MODIFIED:
            return _job(response)
        if "Preference-Applied" not in response.headers:
            yield Sleep(1.0)  # something between us does not let the service wait


def report(retries: Retries, job_id: str) -> Flow[dict[str, Any]]:
    """The report as data."""
    response = yield from retries.send(Call("GET", path(job_id, "report"), {"format": "json"}))
    found: dict[str, Any] = response.json()
    return found


def report_html(retries: Retries, job_id: str) -> Flow[str]:
    """The report as a page."""
    response = yield from retries.send(Call("GET", path(job_id, "report"), {"format": "html"}))
    return response.text


def artifacts(retries: Retries, job_id: str, *, presign: bool) -> Flow[list[Artifact]]:
    """The files of a finished job, of all pages."""
    params: dict[str, str | int] = {"presign": "true" if presign else "false"}
    found: list[Artifact] = []
    while True:
        call = Call("GET", path(job_id, "artifacts"), params)
        page = _parse((yield from retries.send(call)), ArtifactList)
        found += page.data
        if page.next_after is None:
            return found
        params = {**params, "after": page.next_after}


def presigned(retries: Retries, job_id: str, name: str) -> Flow[list[Artifact]]:
    """One file of a finished job with a fresh download URL; an older service lists all."""
    params: dict[str, str | int] = {"presign": "true", "name": name}
    call = Call("GET", path(job_id, "artifacts"), params)
    return _parse((yield from retries.send(call)), ArtifactList).data


def log_page(retries: Retries, job_id: str, after: str) -> Flow[LogPage]:
    """Lines of the job's log after line `after`; the last page is empty."""
    call = Call("GET", path(job_id, "logs"), {"after": after, "limit": LOG_PAGE_SIZE})
    return _parse((yield from retries.send(call)), LogPage)


def catch_up(
    retries: Retries, job_id: str, after: str, *, ended: bool
) -> Flow[tuple[list[Event], bool]]:
    """Events that a stream which ended may have missed, and whether there will be no more.

    `ended` says whether a run ended with the last event that was seen.
    """
    try:
        # The job first: if it is over by now, its last event is among those read after.
        job = yield from get(retries, job_id)
        call = Call("GET", path(job_id, "events"), {"after": after, "limit": 1000})
        found = _parse((yield from retries.send(call)), EventPage).data
    except JobNotFound:
        if ended:
            return [], True  # deleted since
        raise
    over = job.ended and not found
    if not over:
        yield Sleep(_FIRST_DELAY_SECONDS)  # a stream that ends at once is not opened at once again
    return found, over


def path(job_id: str, *more: str) -> str:
    """Path of a job; an id that is none cannot lead elsewhere."""
    if not job_id.replace("_", "").isalnum() or not job_id.isascii():
        raise from_problem(
            Problem(status=404, code="job_not_found", detail=f"{job_id!r} is no id of a job.")
        )
    return "/".join((JOBS, job_id, *more))


def _body(spec: Spec) -> Any:
    if isinstance(spec, JobSpec):
        return spec.model_dump(mode="json")
    return json.loads(json.dumps(dict(spec)))  # fails here, not in the middle of a request
