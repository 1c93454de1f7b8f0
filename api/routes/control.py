"""Control: cancel, pause, resume."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from api.jobs.rebuild import commit_end
from api.jobs.record import JobRecord
from api.jobs.state import JobState
from api.lookup import WritableJob
from api.openapi import headers, problems
from api.problems import ApiError
from api.services import Services, Wired
from api.views import JobView, etag, job_view

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["control"])

_RESPONSES = {
    200: {"description": "Done.", **headers("ETag")},
    202: {"model": JobView, "description": "The worker has been asked to.", **headers("ETag")},
    **problems(401, 403, 404, 409, 503),
}


@router.post("/cancel", responses=_RESPONSES)
def cancel_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Cancel a job: at once if it waits, at the worker's next safe point if it runs."""
    record = _present(services.ledger.request_cancel(job.id))
    if record.state == JobState.CANCELLED:
        record = _commit_cancelled(services, record)
    return _answer(record, response, done=JobState.CANCELLED, asked=JobState.CANCELLING)


@router.post("/pause", responses=_RESPONSES)
def pause_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Pause a job: at once if it waits, at the worker's next safe point if it runs.

    A pause lives in Redis only: should its data be lost, the job is queued again.
    """
    record = _present(services.ledger.request_pause(job.id))
    return _answer(record, response, done=JobState.PAUSED, asked=JobState.PAUSING)


@router.post("/resume", responses=_RESPONSES)
def resume_job(job: WritableJob, services: Wired, response: Response) -> JobView:
    """Queue a paused job again, or withdraw a pause. It goes on from its last finished layer."""
    record = _present(services.ledger.resume(job.id))
    if record.state == JobState.QUEUED:
        services.doorbell.ring(record.id, record.priority)
    return _answer(record, response, done=JobState.RUNNING, asked=JobState.QUEUED)


def _commit_cancelled(services: Services, record: JobRecord) -> JobRecord:
    """Make a cancellation that no worker will commit survive the loss of the ledger."""
    commit_end(services.journal, services.ledger, record)
    return _present(services.ledger.get(record.id))


def _present(record: JobRecord | None) -> JobRecord:
    if record is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "job_not_found", "There is no such job.")
    return record


def _answer(record: JobRecord, response: Response, *, done: JobState, asked: JobState) -> JobView:
    if record.state not in (done, asked):
        raise ApiError(
            HTTPStatus.CONFLICT, "state_conflict", f"The job is {record.state.value}; too late."
        )
    response.status_code = HTTPStatus.OK if record.state == done else HTTPStatus.ACCEPTED
    response.headers["ETag"] = etag(record)
    return job_view(record)
