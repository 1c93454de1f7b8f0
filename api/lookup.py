"""Finding a caller's own job; everybody else's does not exist."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Path
from starlette.concurrency import run_in_threadpool

from api.auth import Reader, Writer, no_longer_valid
from api.callers import Principal, Unremembered
from api.jobs.archive import recall
from api.jobs.record import JobRecord
from api.problems import ApiError
from api.services import Services, Wired

JobId = Annotated[str, Path(description="`id` of the job.", examples=["job_" + "0" * 32])]

_JOB_ID = re.compile(r"job_[0-9a-f]{32}")


async def find_job(services: Services, principal: Principal, job_id: str) -> JobRecord:
    """The caller's job.

    One that the ledger has lost is restored from the journal; one in the archive is read there.

    Raises:
        ApiError: 404, also for another tenant's job; 401 if the caller's key was revoked or ran out
            while an answer lasted.
        LedgerUnavailable: the ledger does not answer.
        StorageError: the journal does not answer.
    """
    if not await _holds(services, principal):
        raise no_longer_valid()
    if not _JOB_ID.fullmatch(job_id):
        raise _unknown()
    record = await services.job_reads.get(job_id)
    if record is None:
        record = await run_in_threadpool(recall, services.journal, services.ledger, job_id)
    if record is None or record.tenant != principal.tenant:
        raise _unknown()
    return record


async def _holds(services: Services, principal: Principal) -> bool:
    try:
        return services.callers.confirm(principal, from_memory=True)
    except Unremembered:
        return await run_in_threadpool(services.callers.confirm, principal)


def _unknown() -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "job_not_found", "There is no such job.")


async def _readable(services: Wired, principal: Reader, job_id: JobId) -> JobRecord:
    return await find_job(services, principal, job_id)


async def _writable(services: Wired, principal: Writer, job_id: JobId) -> JobRecord:
    return await find_job(services, principal, job_id)


ReadableJob = Annotated[JobRecord, Depends(_readable)]
WritableJob = Annotated[JobRecord, Depends(_writable)]
