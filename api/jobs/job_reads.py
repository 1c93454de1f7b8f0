"""Reads jobs from the ledger on the event loop, without a thread.

Clients poll for jobs by the hundred, and handing a read to a thread costs more than the read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from api.jobs.codec import NAMESPACE, READ_JOBS, decode_event, decode_jobs, decode_outlook
from api.jobs.ledger import (
    OUTLOOK_JOBS,
    RETRIES,
    RETRY_CAP_SECONDS,
    SOCKET_TIMEOUT_SECONDS,
    WORKER_SECONDS,
    answering,
    script_of,
)
from api.jobs.limits import RunningLimits
from api.jobs.record import JobEvent, JobRecord, Outlook

# Most connections of a process. A read that finds all in use waits for one.
_CONNECTIONS = 32


class JobReads:
    """Reads jobs at a Redis URL. For one event loop; connects when first used."""

    def __init__(self, redis_url: str, namespace: str = NAMESPACE) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_SECONDS,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            retry=Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_SECONDS), RETRIES),
        )
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._read = self._client.register_script(READ_JOBS)
        self._outlook = self._client.register_script(script_of("outlook"))
        self._namespace = namespace

    async def get(self, job_id: str) -> JobRecord | None:
        """The job, or None.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        with answering():
            text: Any = await self._read(args=[self._namespace, job_id])
        return decode_jobs(text)[0]

    async def outlook(self, job: JobRecord, limits: RunningLimits) -> Outlook | None:
        """As `Ledger.outlook`, of a job that was submitted.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        with answering():
            text: Any = await self._outlook(
                args=[
                    *(self._namespace, job.id, job.tenant, job.priority),
                    *(limits.encode(), WORKER_SECONDS, OUTLOOK_JOBS),
                ]
            )
        return decode_outlook(text)

    async def events_after(
        self, places: Sequence[tuple[str, str]], limit: int
    ) -> dict[str, list[JobEvent]]:
        """New events of several jobs, oldest first. Jobs without new events are left out.

        Args:
            places: Ids of jobs, each once, and the id of the last event that was seen of each.
            limit: Most events of a job.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        keys = {f"{self._namespace}:job:{job_id}:events": job_id for job_id, _ in places}
        streams: Any = {key: after for key, (_, after) in zip(keys, places, strict=True)}
        with answering():
            found: Any = await self._client.xread(streams, count=limit)
        return {keys[key]: [decode_event(*entry) for entry in entries] for key, entries in found}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
