"""Jobs: submit, validate, list, get."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import nullcontext
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import AwareDatetime, BeforeValidator
from starlette.concurrency import run_in_threadpool

from api.admission import output_issues
from api.auth import Reader, Writer
from api.callers import Principal
from api.cursor import Cursor, encode_cursor
from api.inspection.inspectors import InspectionUnavailable
from api.jobs.ledger import LedgerUnavailable
from api.jobs.record import JobRecord, Priority
from api.jobs.state import TERMINAL, JobState
from api.lookup import JobId, Turn, find_job
from api.openapi import headers, problems
from api.problems import ApiError, field_error, invalid, unfinished
from api.request import LABEL, JobRequest, PerhapsJob, Unfinished
from api.services import Services, Wired
from api.submission import examine, examine_parts, submit
from api.views import (
    JobPage,
    JobView,
    StartView,
    ValidationView,
    answer,
    etag,
    job_view,
    start_view,
    time_views,
)
from strucprune_core.plan.partial import PartialJob

MAX_PAGE_SIZE = 100
MAX_WAIT_SECONDS = 60
# How often a waiting client's job is read. It holds no thread in between.
POLL_SECONDS = 0.5
# When a client should first ask for a job that it has submitted.
RETRY_AFTER_SECONDS = 2

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")

router = APIRouter(prefix="/v1/pruning-jobs", tags=["jobs"])

Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N` delays the answer for up to N (at most {MAX_WAIT_SECONDS}) seconds, "
        "until the job changes (with If-None-Match) or ends (without)."
    ),
]


def _rfc3339(value: object) -> object:
    # Pydantic also accepts numbers, and guesses their unit.
    if isinstance(value, str) and not _DATE.match(value):
        raise ValueError("a time is written like 2026-01-31T12:00:00Z")
    return value


Instant = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Makes it safe to repeat the request: the same key and body give the same job.",
    ),
]


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    response_model=JobView,
    responses={
        202: headers("Location", "Retry-After", "ETag", "Idempotency-Replayed"),
        **problems(400, 401, 403, 409, 413, 415, 422, 503),
    },
)
async def submit_job(
    request: JobRequest,
    principal: Writer,
    services: Wired,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job. It is checked against the model before it is accepted."""
    tenant, spec = principal.tenant, request.job_spec()
    async with services.inspections.turn(tenant):
        submission = await run_in_threadpool(
            submit,
            services,
            tenant,
            spec,
            idempotency_key,
            request.notifications,
            request.extends,
        )
    view = job_view(submission.record)
    answer_headers = {
        "Location": view.links.self,
        "Retry-After": str(RETRY_AFTER_SECONDS),
        "ETag": etag(submission.record),
    }
    if submission.replayed:
        answer_headers["Idempotency-Replayed"] = "true"
    return answer(view, HTTPStatus.ACCEPTED, answer_headers)


@router.post("/validate", responses=problems(400, 401, 403, 413, 415, 422, 503))
async def validate_job(request: PerhapsJob, principal: Writer, services: Wired) -> ValidationView:
    """Report what is wrong with a job, or what it would cost, without submitting it.

    Reads the model's configuration and weight headers only. Of a job that is not complete, or wrong
    in some fields, the places that it names are checked all the same.
    """
    tenant = principal.tenant
    if isinstance(request, Unfinished):
        raise await _unfinished(request, tenant, services)
    spec = request.job_spec()
    async with services.inspections.turn(tenant):
        verdict, _ = await run_in_threadpool(
            examine, services, tenant, spec, request.notifications, request.extends
        )
    found = list(verdict.issues)
    if any(issue.retryable for issue in found):
        raise invalid(found)  # cannot be decided now
    if not any(issue.field == "output.uri_prefix" for issue in found):
        # Beside others, so that it shows at its field as soon as that is filled in.
        found += await run_in_threadpool(output_issues, services, tenant, spec.output.uri_prefix)
    if found:
        issues = [field_error(issue) for issue in found]
        return ValidationView(valid=False, issues=issues, estimate=None)
    return ValidationView(
        valid=True,
        issues=[],
        estimate=verdict.estimate,
        runtimes=list(verdict.runtimes or ()),
        times=time_views(verdict.times, services.worker_classes.all(), services.settings),
        starts_in=await run_in_threadpool(_start, services, tenant, spec.runtime.priority),
    )


def _start(services: Services, tenant: str, priority: Priority) -> StartView | None:
    """When a job would start that is submitted now; None where that cannot be told."""
    try:
        limits = services.settings.running_limits
        outlook = services.ledger.outlook("", tenant, priority, limits)
    except LedgerUnavailable:
        return None
    return start_view(outlook)


async def _unfinished(request: Unfinished, tenant: str, services: Services) -> ApiError:
    """The answer to a job that is not valid as a whole."""
    parts = PartialJob.salvaged(request.body)
    async with services.inspections.turn(tenant):
        try:
            issues = await run_in_threadpool(examine_parts, services, tenant, parts)
        except InspectionUnavailable as error:
            issues = [error]  # What is wrong with the body itself is known all the same.
    return unfinished(request.error, issues)


@router.get(
    "",
    response_model=JobPage,
    responses=problems(401, 403, 422, 503),
    dependencies=[Turn],
)
def list_jobs(
    principal: Reader,
    services: Wired,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 50,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of a page.")] = None,
    state: Annotated[JobState | None, Query()] = None,
    label: Annotated[
        str | None, Query(pattern=LABEL, description="A label the jobs have: `name=value`.")
    ] = None,
    created_after: Annotated[Instant | None, Query(examples=["2026-01-31T12:00:00Z"])] = None,
    created_before: Annotated[Instant | None, Query()] = None,
) -> Response:
    """List jobs, newest first."""
    name, _, value = (label or "").partition("=")
    page = services.ledger.list(
        principal.tenant,
        state=state,
        label=(name, value) if label else None,
        created_after=created_after.timestamp() if created_after else None,
        created_before=created_before.timestamp() if created_before else None,
        limit=limit,
        cursor=cursor,
    )
    after = encode_cursor(page.next_cursor) if page.next_cursor else None
    return answer(JobPage(data=[job_view(job) for job in page.jobs], next_cursor=after))


@router.get(
    "/{job_id}",
    responses={
        200: headers("ETag", "Preference-Applied"),
        304: {"description": "The job is as it was.", **headers("ETag")},
        **problems(401, 403, 404, 503),
    },
    response_model=JobView,
)
async def get_job(
    principal: Reader,
    services: Wired,
    job_id: JobId,
    prefer: Prefer = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Get a job, or wait for it to change or end."""
    wait_seconds = _wait_seconds(prefer)
    limit = services.settings.limits_of(principal.tenant).event_streams
    if services.long_answers.refusal(principal.tenant, limit) is not None:
        wait_seconds = 0  # over the limit: answer at once
    with services.long_answers.place(principal.tenant, limit) if wait_seconds else nullcontext():
        record = await _wait(services, principal, job_id, if_none_match, wait_seconds)
    answer_headers = {"ETag": etag(record)}
    if wait_seconds:
        answer_headers["Preference-Applied"] = f"wait={wait_seconds}"
    if _matches(record, if_none_match):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=answer_headers)
    outlook = None
    if record.state == JobState.QUEUED:
        outlook = await services.job_reads.outlook(record, services.settings.running_limits)
    return answer(job_view(record, outlook), headers=answer_headers)


async def _wait(
    services: Services,
    principal: Principal,
    job_id: str,
    if_none_match: str | None,
    wait_seconds: int,
) -> JobRecord:
    deadline = time.monotonic() + wait_seconds
    while True:
        record = await find_job(services, principal, job_id)
        unchanged = _matches(record, if_none_match)
        worth_waiting = unchanged if if_none_match else record.state not in TERMINAL
        left = deadline - time.monotonic()
        if not worth_waiting or record.state in TERMINAL or left <= 0:
            return record
        await asyncio.sleep(min(POLL_SECONDS, left))


def _matches(record: JobRecord, if_none_match: str | None) -> bool:
    if if_none_match is None:
        return False
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag(record) in known or "*" in known


def _wait_seconds(prefer: str | None) -> int:
    found = _WAIT.search(prefer or "")
    return min(int(found.group(1)), MAX_WAIT_SECONDS) if found else 0
