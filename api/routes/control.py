"""Control of a job: cancel, pause, resume, retry, delete."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Query, Response

from api.admission import admit_job
from api.auth import Writer
from api.jobs.doorbell import ring_if_missing
from api.jobs.ends import commit_end
from api.jobs.record import JobRecord
from api.jobs.sequel import delete, retry
from api.jobs.state import TERMINAL, JobState
from api.lookup import WritableJob, find_job
from api.openapi import headers, problems
from api.problems import ApiError
from api.services import Services, Wired
from api.views import JobView, etag, job_view

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["control"])

_RESPONSES = {
    200: {"description": "Done.", **headers("ETag")},
    202: {"model": JobView, "description": "Requested of the worker.", **headers("ETag")},
    **problems(401, 403, 404, 409, 503),
}


@router.post("/cancel", responses=_RESPONSES)
def cancel_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Cancel a job: at once if no worker has it, else at the worker's next safe point."""
    record = services.ledger.request_cancel(job.id) or job
    if record.state == JobState.CANCELLED:
        record = _commit_cancelled(services, record)
    return _answer(record, response, done=JobState.CANCELLED, asked=JobState.CANCELLING)


@router.post("/pause", responses=_RESPONSES)
def pause_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Pause a job: at once if no worker has it, else at the worker's next safe point.

    A pause is kept in Redis only. If Redis loses its data, the job is queued again.
    """
    record = services.ledger.request_pause(job.id) or job
    return _answer(record, response, done=JobState.PAUSED, asked=JobState.PAUSING)


@router.post("/resume", responses=_RESPONSES)
def resume_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Queue a paused job again, or withdraw a pause. It goes on from its last finished layer."""
    record = services.ledger.resume(job.id) or job
    if record.state == JobState.QUEUED:
        ring_if_missing(services.ledger, services.doorbell)
    return _answer(record, response, done=JobState.RUNNING, asked=JobState.QUEUED)


@router.post(
    "/retry",
    responses={
        202: {"model": JobView, "description": "The job is queued again.", **headers("ETag")},
        **problems(401, 403, 404, 409, 503),
    },
    status_code=HTTPStatus.ACCEPTED,
)
def retry_job(job: WritableJob, principal: Writer, services: Wired, response: Response) -> JobView:
    """Run a failed or cancelled job again. It goes on from its last finished layer.

    Attempts and the deadline start anew. While the retry is queued or runs, further requests do
    nothing.
    """
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        admit_job(services, job.tenant, job.id, job.spec["output"]["uri_prefix"])
        if not retry(services.journal, services.ledger, job):
            state = from_thread.run(find_job, services, principal, job.id).state.value
            raise _conflict(f"The job is {state} after all, or is being deleted.")
        job = from_thread.run(find_job, services, principal, job.id)
    elif job.run == 1 or job.state == JobState.SUCCEEDED:
        raise _conflict(
            f"The job is {job.state.value}; only a failed or cancelled one can be retried."
        )
    if job.state == JobState.QUEUED:
        ring_if_missing(services.ledger, services.doorbell)
    response.headers["ETag"] = etag(job)
    return job_view(job)


@router.delete(
    "",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems(401, 403, 404, 409, 422, 503),
)
def delete_job(
    job: WritableJob,
    services: Wired,
    outputs: Annotated[
        bool, Query(description="Also remove the files that the job published.")
    ] = False,
) -> None:
    """Remove a job that has ended, with its workspace, and with its outputs if requested."""
    if job.state not in TERMINAL:
        raise _conflict(f"The job is {job.state.value}; cancel it first.")
    if not delete(services.journal, services.ledger, services.stores.open, job, outputs=outputs):
        raise _conflict("The job has just been retried.")


def _conflict(detail: str) -> ApiError:
    return ApiError(HTTPStatus.CONFLICT, "state_conflict", detail)


def _commit_cancelled(services: Services, record: JobRecord) -> JobRecord:
    """Journal a cancellation that no worker will commit, so that it survives a loss of Redis."""
    commit_end(services.journal, services.ledger, record)
    return services.ledger.get(record.id) or record


def _answer(record: JobRecord, response: Response, *, done: JobState, asked: JobState) -> JobView:
    if record.state not in (done, asked):
        raise _conflict(f"The job is already {record.state.value}.")
    response.status_code = HTTPStatus.OK if record.state == done else HTTPStatus.ACCEPTED
    response.headers["ETag"] = etag(record)
    return job_view(record)
