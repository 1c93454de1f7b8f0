"""Finds a caller's own job. A job of another tenant is answered like one that does not exist."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Path
from starlette.concurrency import run_in_threadpool

from api.auth import Reader, Writer, no_longer_valid
from api.callers import NotCached, Principal
from api.jobs.archive import recall
from api.jobs.journal import new_id
from api.jobs.record import JobRecord
from api.problems import ApiError
from api.services import Services, Wired

JobId = Annotated[str, Path(description="`id` of the job.", examples=["job_" + "0" * 32])]

_JOB_ID = re.compile(r"job_[0-9a-f]{32}")


async def find_job(services: Services, principal: Principal, job_id: str) -> JobRecord:
    """The caller's job.

    A job that the ledger has lost is restored from the journal. An archived job is read there.

    Raises:
        ApiError: 404, also for another tenant's job; 401 if the caller's key was revoked or expired
            during a long answer; 429 if the tenant asks for very many unknown jobs at once.
        LedgerUnavailable: the ledger does not answer.
        StorageError: the journal does not answer.
    """
    if not await _is_valid(services, principal):
        raise no_longer_valid()
    if not _JOB_ID.fullmatch(job_id):
        raise _unknown()
    record = await services.job_reads.get(job_id)
    if record is None or record.tenant != principal.tenant:
        # The journal is asked in both cases, for an id that nobody has if the job is another
        # tenant's: the response time must not reveal which jobs exist.
        sought = job_id if record is None else new_id()
        async with services.restores.turn(principal.tenant):
            record = await run_in_threadpool(recall, services.journal, services.ledger, sought)
    if record is None or record.tenant != principal.tenant:
        raise _unknown()
    return record


async def _is_valid(services: Services, principal: Principal) -> bool:
    try:
        return services.callers.confirm(principal, cached_only=True)
    except NotCached:
        return await run_in_threadpool(services.callers.confirm, principal)


def _unknown() -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "job_not_found", "There is no such job.")


async def _take_turn(services: Wired, principal: Reader) -> AsyncIterator[None]:
    """One of the tenant's turns, for a route that blocks a thread."""
    async with services.threads.turn(principal.tenant):
        yield


async def _readable(services: Wired, principal: Reader, job_id: JobId) -> AsyncIterator[JobRecord]:
    async with services.threads.turn(principal.tenant):
        yield await find_job(services, principal, job_id)


async def _writable(services: Wired, principal: Writer, job_id: JobId) -> AsyncIterator[JobRecord]:
    async with services.threads.turn(principal.tenant):
        yield await find_job(services, principal, job_id)


# Turns end before the answer is sent, so a client that reads slowly holds none.
Turn = Depends(_take_turn, scope="function")
ReadableJob = Annotated[JobRecord, Depends(_readable, scope="function")]
WritableJob = Annotated[JobRecord, Depends(_writable, scope="function")]
