"""Reading a job from the ledger on the event loop, without a thread: what clients poll for.

Hundreds of clients look at their jobs, and the way to a thread and back costs more than the read.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from api.jobs.codec import NAMESPACE, READ_JOBS, decode_jobs
from api.jobs.ledger import (
    RETRIES,
    RETRY_CAP_SECONDS,
    SOCKET_TIMEOUT_SECONDS,
    answering,
)
from api.jobs.record import JobRecord

# Connections of a process; who finds all in use waits for one.
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
        self._namespace = namespace

    async def get(self, job_id: str) -> JobRecord | None:
        """The job, or None.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        with answering():
            text: Any = await self._read(args=[self._namespace, job_id])
        return decode_jobs(text)[0]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
