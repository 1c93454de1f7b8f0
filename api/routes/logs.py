"""The log of a job: the newest lines of its solves, kept in the ledger as long as the job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from api.jobs.instants import instant
from api.lookup import ReadableJob
from api.openapi import problems
from api.request import EVENT_ID
from api.services import Wired
from api.views import LogLineView, LogPage, log_line_view

MAX_PAGE_SIZE = 1000

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["events"])


@router.get(
    "/logs",
    response_model=LogPage,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(401, 403, 404, 422, 503),
    },
)
def get_logs(
    request: Request,
    job: ReadableJob,
    services: Wired,
    after: Annotated[
        str, Query(pattern=EVENT_ID, description="Id of the last line already seen.")
    ] = "0",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = MAX_PAGE_SIZE,
) -> Response:
    """Log lines of a job's solves, over all attempts. Plain text with `Accept: text/plain`.

    About the newest thousand lines are kept, until the job is removed or Redis loses its data.
    """
    lines = services.ledger.logs(job.id, after, limit)
    shown = [log_line_view(line) for line in lines]
    if "text/plain" in request.headers.get("Accept", ""):
        return PlainTextResponse("".join(map(_as_text, shown)))
    page = LogPage(data=shown, next_after=lines[-1].id if lines else after)
    return JSONResponse(page.model_dump(mode="json"))


def _as_text(line: LogLineView) -> str:
    at = instant(line.at.timestamp(), "milliseconds")
    return f"{at} run {line.run} attempt {line.attempt} {line.level} {line.message}\n"
