"""Events of a job, as a page of JSON or as a stream (SSE)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from api import event_feed
from api.auth import Reader
from api.callers import NotCached, Principal
from api.jobs.record import JobEvent, JobRecord
from api.jobs.state import TERMINAL
from api.lookup import JobId, find_job
from api.openapi import problems
from api.problems import ApiError
from api.request import EVENT_ID
from api.services import Services, Wired
from api.views import EventPage, event_view
from strucprune_core.errors import StrucPruneError

MAX_PAGE_SIZE = 1000
# How often a stream checks that its key is still valid.
CONFIRM_SECONDS = 0.5
# How often it reads the job itself, which may have been removed or lost with the ledger.
LOOK_SECONDS = 10.0
# Proxies close connections that are silent for longer, often after 30 s or 60 s.
COMMENT_SECONDS = 15.0

_SSE = "text/event-stream"

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["events"])


@router.get(
    "/events",
    response_model=EventPage,
    responses={
        200: {"content": {_SSE: {"schema": {"type": "string"}}}},
        **problems(401, 403, 404, 422, 503),
    },
)
async def get_events(
    request: Request,
    principal: Reader,
    services: Wired,
    job_id: JobId,
    after: Annotated[
        str, Query(pattern=EVENT_ID, description="Id of the last event already seen.")
    ] = "0",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 100,
    last_event_id: Annotated[str | None, Header(pattern=EVENT_ID)] = None,
) -> Response:
    """The events of a job. With `Accept: text/event-stream`, a stream until the job ends."""
    # In both cases, so that an unknown job is a 404 and not an empty stream.
    job = await find_job(services, principal, job_id)
    start = last_event_id or after
    if _SSE in request.headers.get("Accept", ""):
        return EventStream(services, principal, job, start)
    async with services.threads.turn(principal.tenant):
        events = await run_in_threadpool(services.ledger.events, job_id, start, limit)
    page = EventPage(
        data=[event_view(event) for event in events],
        next_after=events[-1].id if events else start,
    )
    return JSONResponse(page.model_dump(mode="json"), headers={"Vary": "Accept"})


class EventStream(StreamingResponse):
    """Events of a job as they happen. Refused if too many streams are open."""

    def __init__(
        self, services: Services, principal: Principal, job: JobRecord, after: str
    ) -> None:
        super().__init__(
            _stream(services, principal, job, after),
            media_type=_SSE,
            headers={"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"},
        )
        self._services = services
        self._tenant = principal.tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            ApiError: before anything is sent, if too many streams are open.
        """
        limit = self._services.settings.limits_of(self._tenant).event_streams
        with self._services.long_answers.place(self._tenant, limit):
            await super().__call__(scope, receive, send)


async def _stream(
    services: Services, principal: Principal, job: JobRecord, after: str
) -> AsyncIterator[str]:
    """Events as they happen. Ends after the job's last event, or if the ledger does not answer.

    Clients reconnect with `Last-Event-ID`, so ending early loses nothing.
    """
    spoke_at = time.monotonic()
    look_at, known = spoke_at, True
    while True:
        try:
            # The job first: if it has ended, its last event is among those read next.
            looks, over = time.monotonic() >= look_at, False
            if looks:
                job = job if known else await find_job(services, principal, job.id)
                known, over = False, job.state in TERMINAL
                events = await services.feed.look(job.id, after)
                look_at = time.monotonic() + LOOK_SECONDS
            else:
                await _confirm(services, principal, job.id)
                events = await services.feed.wait(job.id, after, CONFIRM_SECONDS)
        except (StrucPruneError, ApiError):
            return
        if over and not events:
            return
        for event in events:
            yield _format(event)
        if events:
            after, spoke_at = events[-1].id, time.monotonic()
        if len(events) == event_feed.MAX_EVENTS or any(map(_is_end, events)):
            look_at = 0.0  # there may be more, or this was all
        if time.monotonic() - spoke_at >= COMMENT_SECONDS:
            yield ": still here\n\n"
            spoke_at = time.monotonic()


async def _confirm(services: Services, principal: Principal, job_id: str) -> None:
    """Check that the caller's key is still valid.

    Raises:
        ApiError: it is not.
    """
    try:
        holds = services.callers.confirm(principal, cached_only=True)
    except NotCached:
        holds = False
    if not holds:
        await find_job(services, principal, job_id)  # asks the state store, and raises


def _is_end(event: JobEvent) -> bool:
    """Whether a run of the job ended with this event. A retry may follow."""
    return event.type == "state" and event.data.get("state") in TERMINAL


def _format(event: JobEvent) -> str:
    data = event_view(event).model_dump_json()
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n"
