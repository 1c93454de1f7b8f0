"""The webhooks that are still to be sent: subscriptions in object storage, their schedule in Redis.

In the state store:
  webhooks/{job_id}/{fingerprint}-{created_at}.json
                           a `Subscription`; written before the job's spec, removed after the job:
                           until then the job may be retried and end once more. Several requests may
                           use one idempotency key. The subscription of the one that became the job
                           counts: the spec, and so the ledger, has its fingerprint and time too
In Redis (NS as of the ledger):
  NS:webhooks              zset   job id -> time at which to read its events, infinity if all were
                                  sent; the ledger sets it to now whenever the job's state changes
                                  and when the job is removed
  NS:webhook:ID            hash   cursor: last event that was handled; failures: failed tries since;
                                  gone once all were sent
  NS:webhook:ID:busy       string while a dispatcher sends its messages

If Redis loses its data, the schedule is made again from the store, and messages may be sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api.jobs.ledger import (
    RETRIES,
    RETRY_CAP_SECONDS,
    SOCKET_TIMEOUT_SECONDS,
    LedgerUnavailable,
)
from api.jobs.record import JobRecord
from strucprune_core.errors import ObjectNotFound
from strucprune_core.storage.store import Store

_ROOT = "webhooks/"
_SUFFIX = ".json"
# Sets a job's time to infinity, unless it was changed meanwhile because something happened.
_REST = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) == tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], '+inf', ARGV[1])
  redis.call('DEL', KEYS[2])
end
"""


class Subscription(BaseModel):
    """Where to send webhooks about a job.

    Attributes:
        fingerprint: The fingerprint of the request.
        created_at: Time of the request, in unix seconds.
        format: `standard` or `slack`; see `messages`.
        told_run: The last run of the job whose messages were all sent or given up.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format_version: Literal[1] = 1
    tenant: str
    webhook_url: str = Field(repr=False)
    events: tuple[str, ...]
    fingerprint: str
    created_at: float
    format: str = "standard"
    told_run: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryProgress:
    """How far the messages of a job are sent: the last event handled, and failures since."""

    cursor: str
    failures: int


def connect(state: Store, redis_url: str, namespace: str = "strucprune") -> Outbox:
    """The outbox of a ledger. Connects when first used."""
    client = redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_SECONDS), RETRIES),
    )
    return Outbox(state, client, namespace)


class Outbox:
    """Subscriptions and their schedule. Safe to share between threads and processes.

    Methods raise `LedgerUnavailable` if Redis does not answer, `StorageError` if the store does
    not.

    Args:
        state: The service's state store.
        client: A Redis client with `decode_responses=True`.
        namespace: Prefix of every key.
    """

    def __init__(self, state: Store, client: redis.Redis, namespace: str = "strucprune") -> None:
        self._state = state
        self._client = client
        self._namespace = namespace

    def subscribe(self, job_id: str, subscription: Subscription) -> None:
        """Store a subscription, before its request becomes the job."""
        self._put(job_id, subscription)
        self.schedule(job_id, self.now(), only_new=True)

    def now(self) -> float:
        """Unix seconds by Redis' clock, which the ledger uses for the schedule too."""
        seconds, micros = self._redis("time")
        return float(seconds) + float(micros) / 1e6

    def subscription(self, record: JobRecord) -> Subscription | None:
        """The subscription of a job, or None."""
        return self._read(_object(record.id, record.fingerprint, record.created_at))

    def subscribed(self) -> Iterator[str]:
        """Ids of all jobs with subscriptions. An id may come twice."""
        for info in self._state.list(_ROOT):
            yield info.key.removeprefix(_ROOT).partition("/")[0]

    def rest(self, job_id: str, subscription: Subscription, run: int, at: float) -> None:
        """Note that the messages of all runs up to this one are sent, and wait for the ledger.

        `at` is the time that was scheduled last. If it has changed meanwhile, it stays.
        """
        if subscription.told_run < run:
            self._put(job_id, subscription.model_copy(update={"told_run": run}))
        keys = (self._key("webhooks"), self._key("webhook", job_id))
        self._redis("eval", _REST, len(keys), *keys, job_id, repr(at))

    def drop(
        self, job_id: str, spent: Callable[[Subscription], bool] = lambda subscription: True
    ) -> None:
        """Remove the subscriptions of a job that are spent, and its schedule if none is left."""
        left = False
        for info in [*self._state.list(f"{_ROOT}{job_id}/")]:
            subscription = self._read(info.key)
            if subscription is None or spent(subscription):
                self._state.delete(info.key)
            else:
                left = True
        if not left:
            # A subscription that is made at this moment is found by the next scan of the store.
            self._redis("zrem", self._key("webhooks"), job_id)
            self._redis("delete", self._key("webhook", job_id))

    def schedule(self, job_id: str, at: float, *, only_new: bool = False) -> None:
        """Read the job's events at this time (unix seconds)."""
        self._redis("zadd", self._key("webhooks"), {job_id: at}, nx=only_new)

    def due(self, now: float, limit: int) -> list[str]:
        """Jobs whose events are due to be read."""
        found: Any = self._redis(
            "zrangebyscore", self._key("webhooks"), "-inf", now, start=0, num=limit
        )
        return list(found)

    def take(self, job_id: str, seconds: float) -> bool:
        """Keep other dispatchers from the job for a while. False if one has it."""
        return bool(
            self._redis("set", self._key("webhook", job_id, "busy"), "1", nx=True, ex=int(seconds))
        )

    def leave(self, job_id: str) -> None:
        """Let other dispatchers have the job."""
        self._redis("delete", self._key("webhook", job_id, "busy"))

    def progress(self, job_id: str) -> DeliveryProgress:
        """How far the job's messages are sent."""
        found: Any = self._redis("hgetall", self._key("webhook", job_id))
        return DeliveryProgress(found.get("cursor", "0"), int(found.get("failures", 0)))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def note(self, job_id: str, progress: DeliveryProgress) -> None:
        """Store how far the job's messages are sent."""
        fields = {"cursor": progress.cursor, "failures": progress.failures}
        self._redis("hset", self._key("webhook", job_id), mapping=fields)

    def _put(self, job_id: str, subscription: Subscription) -> None:
        key = _object(job_id, subscription.fingerprint, subscription.created_at)
        self._state.put(key, subscription.model_dump_json().encode())

    def _read(self, key: str) -> Subscription | None:
        try:
            return Subscription.model_validate_json(bytes(self._state.read(key)))
        except (ObjectNotFound, ValidationError):
            return None  # removed, or damaged

    def _redis(self, verb: str, *arguments: Any, **more: Any) -> Any:
        try:
            return getattr(self._client, verb)(*arguments, **more)
        except RedisError as error:
            raise LedgerUnavailable(f"The job ledger does not answer ({error}).") from error

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


def _object(job_id: str, fingerprint: str, created_at: float) -> str:
    return f"{_ROOT}{job_id}/{fingerprint}-{round(created_at * 1_000_000)}{_SUFFIX}"
