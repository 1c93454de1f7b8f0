"""A real ledger, read on an event loop."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from api.jobs.job_reads import JobReads
from api.jobs.ledger import LedgerUnavailable, connect
from api.jobs.record import JobRecord, NewJob
from embedded.processes import free_ports

# Whatever text may hold that JSON, Lua or Redis could mistake for something of theirs.
LABELS = {
    "plain": "a",
    "odd": '"\\/\n\t\x00\x7f é 漢 😀',
    "empty": "",
    "null": "null",
    "list": "[]",
}


def new_job(number: int) -> NewJob:
    return NewJob(
        id=f"job_{number}",
        tenant="acme",
        fingerprint="f",
        created_at=time.time(),
        spec={"empty": {}, "none": None, "number": 0.1, "list": [1]},
        labels=LABELS,
    )


def read(redis_url: str, namespace: str, *job_ids: str) -> list[JobRecord | None]:
    """All at once."""

    async def go() -> list[JobRecord | None]:
        reads = JobReads(redis_url, namespace)
        try:
            return await asyncio.gather(*map(reads.get, job_ids))
        finally:
            await reads.close()

    return asyncio.run(go())


def test_as_the_ledger_reads_it(redis_url: str) -> None:
    namespace = f"test-{uuid4().hex}"
    ledger = connect(redis_url, namespace)
    ledger.create(new_job(0))
    known, unknown = read(redis_url, namespace, "job_0", "job_1")
    assert known is not None
    assert known == ledger.get("job_0")
    assert known.labels == LABELS
    assert known.spec == new_job(0).spec
    assert unknown is None
    ledger.close()


def test_more_at_once_than_there_are_connections(redis_url: str) -> None:
    namespace = f"test-{uuid4().hex}"
    ledger = connect(redis_url, namespace)
    ids = [f"job_{number}" for number in range(3)] * 100
    for number in range(3):
        ledger.create(new_job(number))
    assert [job and job.id for job in read(redis_url, namespace, *ids)] == ids
    ledger.close()


def test_no_redis() -> None:
    with pytest.raises(LedgerUnavailable):
        read(f"redis://127.0.0.1:{free_ports(1)[0]}", "test", "job_0")
