"""Events of a job, as a page of JSON or as a stream (SSE)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Reader
from api.callers import Principal, Unremembered
from api.jobs.record import JobEvent, JobRecord
from api.jobs.state import TERMINAL
from api.lookup import JobId, find_job
from api.openapi import problems
from api.problems import ApiError
from api.services import Services, Wired
from api.views import EventPage, event_view
from strucprune_core.errors import StrucPruneError

MAX_PAGE_SIZE = 1000
POLL_SECONDS = 0.5
# Proxies close connections that are silent for longer, often after 30 s or 60 s.
COMMENT_SECONDS = 15.0

_SSE = "text/event-stream"
EVENT_ID = r"^\d{1,16}(-\d{1,16})?$"

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
    """What happened to a job. With `Accept: text/event-stream`, a stream until the job ends."""
    # Asked for in either case: unknown jobs are a 404, not an empty stream.
    await find_job(services, principal, job_id)
    start = last_event_id or after
    if _SSE in request.headers.get("Accept", ""):
        stream = _stream(services, principal, job_id, start)
        headers = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type=_SSE, headers=headers)
    events = await run_in_threadpool(services.ledger.events, job_id, start, limit)
    page = EventPage(
        data=[event_view(event) for event in events],
        next_after=events[-1].id if events else start,
    )
    return JSONResponse(page.model_dump(mode="json"), headers={"Vary": "Accept"})


async def _stream(
    services: Services, principal: Principal, job_id: str, after: str
) -> AsyncIterator[str]:
    """Events as they happen; ends when the job is over and all is told, or the ledger goes away.

    Clients reconnect with `Last-Event-ID`, so ending early loses nothing.
    """
    spoke_at = time.monotonic()
    while True:
        try:
            job, events = await _look(services, principal, job_id, after)
        except (StrucPruneError, ApiError):
            return
        for event in events:
            yield _format(event)
        if events:
            after, spoke_at = events[-1].id, time.monotonic()
        if job.state in TERMINAL:
            if not events:
                return
            # It may have been retried between the two reads, or there be another page.
            continue
        if time.monotonic() - spoke_at >= COMMENT_SECONDS:
            yield ": still here\n\n"
            spoke_at = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)


async def _look(
    services: Services, principal: Principal, job_id: str, after: str
) -> tuple[JobRecord, list[JobEvent]]:
    """The job, and what has happened to it; read once for all who are as far as that."""

    def read() -> tuple[JobRecord | None, list[JobEvent]]:
        # The job first: if it is over by now, its last event is among those read after.
        return services.ledger.get(job_id), services.ledger.events(job_id, after, MAX_PAGE_SIZE)

    job, events = await services.shared.get((job_id, after), POLL_SECONDS / 2, read)
    try:
        holds = services.callers.confirm(principal, from_memory=True)
    except Unremembered:
        holds = False
    if job is None or job.tenant != principal.tenant or not holds:
        # Asked thoroughly: perhaps the ledger has lost the job, or the key was not remembered.
        job = await find_job(services, principal, job_id)
        events = await run_in_threadpool(services.ledger.events, job_id, after, MAX_PAGE_SIZE)
    return job, events


def _format(event: JobEvent) -> str:
    data = event_view(event).model_dump_json()
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n"
