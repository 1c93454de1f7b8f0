"""The job ledger: who may do what to a job, now. A protocol, and the Redis / Valkey adapter.

Each verb is one Lua script (`lua/`), so each is atomic: the check, the change, every index and the
event. Each may be repeated, as the client library does with a call whose answer was lost. All times
are the server's own. The ledger is live state, not the archive: what must survive the loss of Redis
is in the `Journal`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, get_args
from urllib.parse import quote

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api.jobs.codec import LUA, NAMESPACE, decode_event, decode_jobs, encode, encode_job
from api.jobs.record import (
    Claim,
    JobEvent,
    JobRecord,
    LogLine,
    NewJob,
    Page,
    Priority,
    Queue,
    Signal,
)
from api.jobs.seats import HELP_FAILURES, YIELD_SECONDS, RedisSeats, Seats
from api.jobs.state import HELD, TERMINAL, TRANSITIONS, JobState
from strucprune_core.errors import StrucPruneError

# Newest events kept per job (about 10 bytes of Redis memory per byte of JSON: some 200 kB a job).
EVENTS_KEPT = 1000
# Newest log lines kept per job: a few lines per unit of work, of at most some 1000 characters.
LOGS_KEPT = 1000
# From the check of a quota until the job is in the ledger: some requests to the object store.
RESERVATION_SECONDS = 60.0
# A request must not hang on a dead Redis: three quick tries, then `LedgerUnavailable`.
SOCKET_TIMEOUT_SECONDS = 5.0
RETRIES = 2
RETRY_CAP_SECONDS = 0.5
# Scripts that need nothing of the others.
_ALONE = frozenset({"read_jobs"})

# Named here because the ledger's method `list` hides the built-in inside the class body.
JobIds = list[str]
Events = list[JobEvent]
LogLines = list[LogLine]
Finished = Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
Stop = Literal["cancel", "pause", "resume"]


class LedgerUnavailable(StrucPruneError):
    """Redis does not answer; the same request may succeed later."""

    code: ClassVar[str] = "ledger_unavailable"
    retryable: ClassVar[bool] = True


class Refusal(StrEnum):
    """Why a job was not to be had."""

    # It is not queued: another worker was faster, or it is over, or unknown.
    DUPLICATE = "duplicate"
    # Its tenant has as many jobs running as it may. `unblock` names it once one of them ends.
    BLOCKED = "blocked"


class Ledger(Protocol):
    """The live state of all jobs. Every method raises `LedgerUnavailable`."""

    @property
    def seats(self) -> Seats:
        """Who helps with which job."""

    def create(self, new: NewJob) -> bool:
        """Enter a queued job. False, and nothing changed, if it is already there."""

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""

    def list(
        self,
        tenant: str,
        *,
        state: JobState | None = None,
        label: tuple[str, str] | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """A page of a tenant's jobs, newest first; the times are unix seconds, both exclusive.

        Costs the same at any depth. With both filters, or when jobs change state meanwhile, a page
        may hold fewer than `limit` jobs and still have a successor.
        """

    def claim(
        self, job_id: str, worker_id: str, lease_seconds: float, max_running: int | None = None
    ) -> Claim | Refusal:
        """Take a queued job, or learn why not.

        Args:
            job_id: The job.
            worker_id: Who takes it, for people.
            lease_seconds: How long the claim lasts without a heartbeat.
            max_running: Jobs that its tenant may have running; None for any number.
        """

    def heartbeat(
        self,
        job_id: str,
        fence: int,
        lease_seconds: float,
        progress: Mapping[str, Any] | None = None,
    ) -> Signal:
        """Renew the lease, note progress, and learn whether to stop.

        After `LOST` the caller must stop at once: the job is somebody else's or over.
        """

    def signal(self, job_id: str, fence: int) -> Signal:
        """What a heartbeat would say, at a fraction of its cost and renewing nothing."""

    def append_logs(self, job_id: str, fence: int, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if `fence` is stale.

        Each has the fields of `LogLine` but the id.
        """

    def append_layers(self, job_id: str, fence: int, news: Sequence[Mapping[str, Any]]) -> bool:
        """Add an event `layers` of each to the job's. False if `fence` is stale.

        See `JobEvent` for what it holds. Telling the same twice does no harm.
        """

    def release(self, job_id: str, fence: int, error: Mapping[str, Any] | None = None) -> bool:
        """Give the job back at a safe point; the attempt does not count.

        Running goes to queued, pausing to paused, cancelling to cancelled. False if `fence` is
        stale.

        Args:
            job_id: The job.
            fence: Of the claim.
            error: What kept the worker from going on, if it is queued again for that.
        """

    def decline(self, job_id: str, error: Mapping[str, Any], seconds: float) -> bool:
        """Note on a job that has been queued for so long why a worker leaves it to others.

        False, and nothing changed, if it has not, or that is noted already.
        """

    def finish(
        self,
        job_id: str,
        fence: int,
        state: Finished,
        *,
        error: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> bool:
        """End the job, after its outcome is in the journal.

        False if `fence` is stale or the state forbids it (cancelled needs a requested cancel).
        """

    def retry_later(
        self,
        job_id: str,
        fence: int,
        error: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
    ) -> JobState:
        """Report a retryable failure: queued while attempts are left, else failed.

        `plan`, if given, is what the next attempts of this run do otherwise (see `JobRecord`).
        Cancelled or paused if that was asked for. Under a stale fence nothing changes and the
        present state is returned; a job that the ledger has lost counts as queued, because the
        rebuild will queue it.
        """

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """Cancel at once if no worker holds the job, else ask the worker to. The job afterwards.

        Unchanged if it is already over: the caller decides what that means.
        """

    def request_pause(self, job_id: str) -> JobRecord | None:
        """As `request_cancel`, for a pause."""

    def resume(self, job_id: str) -> JobRecord | None:
        """Queue a paused job again, or withdraw a pause. The job afterwards."""

    def reopen(self, job_id: str, run: int) -> bool:
        """Queue a job again whose run `run` failed or was cancelled. True if its next run exists.

        The new run counts attempts and its deadline from zero.
        """

    def forget(self, job_id: str) -> bool:
        """Remove a job that is over. False if it is not over; True also if it is not there."""

    def settle(
        self,
        job_id: str,
        state: Finished,
        *,
        finished_at: float,
        run: int = 1,
        error: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> bool:
        """Copy a run's outcome from the journal whatever the state. True if that changed anything.

        Changes nothing if the job is in another run by now.
        """

    def expired(self, limit: int) -> JobIds:
        """Jobs whose lease has expired; changes nothing."""

    def requeue_expired(self, limit: int) -> JobIds:
        """Take back jobs whose lease has expired; the ids of those that changed state.

        Queued while attempts are left, else failed with `worker_lost`; cancelled or paused if that
        was asked for.
        """

    def overdue(self, limit: int) -> JobIds:
        """Fail jobs whose deadline has passed while no worker holds them; their ids."""

    def ended_longer_than(self, seconds: float, limit: int) -> JobIds:
        """Jobs that have been over for that long, the first to end first."""

    def reserve(self, tenant: str, job_id: str, limit: int) -> bool:
        """Reserve one of `limit` places among the tenant's jobs that are not over.

        False if there is none. The place is the job's once it is entered or queued, and free again
        if neither happens within `RESERVATION_SECONDS`.
        """

    def take_token(self, tenant: str, per_second: float, most: int) -> float:
        """Take a token from the tenant's bucket: 0.0, or the seconds until there will be one."""

    def unblock(self, tenant: str) -> tuple[str, Priority] | None:
        """A queued job to ring for, now that fewer of the tenant's run; see `Refusal.BLOCKED`."""

    def queued(self, priority: Priority) -> int:
        """How many jobs of this priority wait for a worker."""

    def queued_longer_than(self, priority: Priority, seconds: float, limit: int) -> JobIds:
        """Jobs that have waited that long, longest first; being returned restarts their wait."""

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""

    def queues(self) -> dict[Priority, Queue]:
        """What waits for workers."""

    def add_totals(self, amounts: Mapping[str, float]) -> None:
        """Add to totals by key, all or nothing; see `meters`."""

    def totals(self) -> dict[str, float]:
        """Everything that was ever added, by key."""

    def events(self, job_id: str, after: str = "0", limit: int = 100) -> Events:
        """What happened to the job after event `after`, oldest first."""

    def logs(self, job_id: str, after: str = "0", limit: int = 100) -> LogLines:
        """The job's log after line `after`, oldest first."""

    def is_intact(self) -> bool:
        """Whether every journalled job is known here; False in a new or flushed Redis."""

    def mark_intact(self) -> None:
        """Say that every journalled job is known here."""


def connect(redis_url: str, namespace: str = NAMESPACE) -> RedisLedger:
    """The ledger at a Redis URL; connects lazily, and may be shared between threads."""
    client = redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_SECONDS), RETRIES),
    )
    return RedisLedger(client, namespace)


class RedisLedger:
    """The ledger on one Redis or Valkey server (not a cluster).

    Args:
        client: A client with `decode_responses=True`.
        namespace: Prefix of every key.
    """

    def __init__(self, client: redis.Redis, namespace: str = NAMESPACE) -> None:
        self._client = client
        self._namespace = namespace
        prelude = _prelude()
        self._scripts = {
            path.stem: client.register_script(
                ("" if path.stem in _ALONE else prelude) + path.read_text()
            )
            for path in sorted(LUA.glob("*.lua"))
            if path.stem != "common"
        }
        self._seats = RedisSeats(self._run)

    @property
    def seats(self) -> Seats:
        """See `Ledger.seats`."""
        return self._seats

    def create(self, new: NewJob) -> bool:
        """See `Ledger.create`."""
        position = f"{_instant(new.created_at)}:{new.id}"
        names = json.dumps([_label_index(name, value) for name, value in new.labels.items()])
        return bool(self._run("create", new.id, position, names, *encode_job(new)))

    def get(self, job_id: str) -> JobRecord | None:
        """See `Ledger.get`."""
        return decode_jobs(self._run("read_jobs", job_id))[0]

    def list(
        self,
        tenant: str,
        *,
        state: JobState | None = None,
        label: tuple[str, str] | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """See `Ledger.list`."""
        index = self._key("tenant", tenant, *_index_of(state, label))
        newer = [cursor] if cursor else []
        if created_before is not None:
            newer.append(_instant(created_before))
        newest = f"({min(newer)}" if newer else "+"
        # ';' follows ':', so this is past every job of that very instant.
        oldest = f"({_instant(created_after)};" if created_after is not None else "-"
        with answering():
            positions: Any = self._client.zrevrangebylex(index, newest, oldest, 0, limit + 1)
        ids = [position.split(":", 1)[1] for position in positions[:limit]]
        found = decode_jobs(self._run("read_jobs", *ids))
        jobs = [job for job in found if job and (state is None or job.state == state)]
        return Page(jobs, positions[limit - 1] if len(positions) > limit else None)

    def claim(
        self, job_id: str, worker_id: str, lease_seconds: float, max_running: int | None = None
    ) -> Claim | Refusal:
        """See `Ledger.claim`."""
        limit = "" if max_running is None else max_running
        claimed = self._run("claim", job_id, worker_id, lease_seconds, _nonce(), limit)
        if isinstance(claimed, str):
            return Refusal(claimed)
        fence, attempt, run, left = claimed
        return Claim(job_id, int(fence), int(attempt), int(run), float(left) if left else None)

    def heartbeat(
        self,
        job_id: str,
        fence: int,
        lease_seconds: float,
        progress: Mapping[str, Any] | None = None,
    ) -> Signal:
        """See `Ledger.heartbeat`."""
        return Signal(self._run("heartbeat", job_id, fence, lease_seconds, encode(progress)))

    def signal(self, job_id: str, fence: int) -> Signal:
        """See `Ledger.signal`."""
        return Signal(self._run("signal", job_id, fence))

    def append_logs(self, job_id: str, fence: int, lines: Sequence[Mapping[str, Any]]) -> bool:
        """See `Ledger.append_logs`."""
        return bool(self._run("append_logs", job_id, fence, *map(encode, lines)))

    def append_layers(self, job_id: str, fence: int, news: Sequence[Mapping[str, Any]]) -> bool:
        """See `Ledger.append_layers`."""
        return bool(self._run("append_layers", job_id, fence, *map(encode, news)))

    def release(self, job_id: str, fence: int, error: Mapping[str, Any] | None = None) -> bool:
        """See `Ledger.release`."""
        return bool(self._run("release", job_id, fence, _nonce(), encode(error)))

    def decline(self, job_id: str, error: Mapping[str, Any], seconds: float) -> bool:
        """See `Ledger.decline`."""
        return bool(self._run("decline", job_id, encode(error), seconds))

    def finish(
        self,
        job_id: str,
        fence: int,
        state: Finished,
        *,
        error: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> bool:
        """See `Ledger.finish`."""
        return bool(self._run("finish", job_id, fence, state, encode(error), encode(summary)))

    def retry_later(
        self,
        job_id: str,
        fence: int,
        error: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
    ) -> JobState:
        """See `Ledger.retry_later`."""
        state = self._run("retry_later", job_id, fence, encode(error), encode(plan))
        return JobState(state or JobState.QUEUED)

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """See `Ledger.request_cancel`."""
        return self._request(job_id, "cancel")

    def request_pause(self, job_id: str) -> JobRecord | None:
        """See `Ledger.request_pause`."""
        return self._request(job_id, "pause")

    def resume(self, job_id: str) -> JobRecord | None:
        """See `Ledger.resume`."""
        return self._request(job_id, "resume")

    def reopen(self, job_id: str, run: int) -> bool:
        """See `Ledger.reopen`."""
        return bool(self._run("reopen", job_id, run))

    def forget(self, job_id: str) -> bool:
        """See `Ledger.forget`."""
        return bool(self._run("forget", job_id))

    def settle(
        self,
        job_id: str,
        state: Finished,
        *,
        finished_at: float,
        run: int = 1,
        error: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> bool:
        """See `Ledger.settle`."""
        at = f"{finished_at:.6f}"
        return bool(self._run("settle", job_id, state, encode(error), encode(summary), at, run))

    def expired(self, limit: int) -> JobIds:
        """See `Ledger.expired`."""
        return [*self._run("expired", limit)]

    def requeue_expired(self, limit: int) -> JobIds:
        """See `Ledger.requeue_expired`."""
        return [*self._run("requeue_expired", limit)]

    def overdue(self, limit: int) -> JobIds:
        """See `Ledger.overdue`."""
        return [*self._run("overdue", limit)]

    def ended_longer_than(self, seconds: float, limit: int) -> JobIds:
        """See `Ledger.ended_longer_than`."""
        return [*self._run("ended_longer_than", seconds, limit)]

    def reserve(self, tenant: str, job_id: str, limit: int) -> bool:
        """See `Ledger.reserve`."""
        return bool(self._run("reserve", tenant, job_id, limit, RESERVATION_SECONDS))

    def take_token(self, tenant: str, per_second: float, most: int) -> float:
        """See `Ledger.take_token`."""
        return float(self._run("take_token", tenant, per_second, most))

    def unblock(self, tenant: str) -> tuple[str, Priority] | None:
        """See `Ledger.unblock`."""
        found = self._run("unblock", tenant)
        return (found[0], found[1]) if found else None

    def queued(self, priority: Priority) -> int:
        """See `Ledger.queued`."""
        with answering():
            count: Any = self._client.zcard(self._key("queued", priority))
        return int(count)

    def queued_longer_than(self, priority: Priority, seconds: float, limit: int) -> JobIds:
        """See `Ledger.queued_longer_than`."""
        return [*self._run("queued_longer_than", priority, seconds, limit)]

    def counts(self) -> dict[str, int]:
        """See `Ledger.counts`."""
        with answering():
            found: Any = self._client.hgetall(self._key("counts"))
        return {state.value: int(found.get(state.value, 0)) for state in JobState}

    def queues(self) -> dict[Priority, Queue]:
        """See `Ledger.queues`."""
        found: dict[Priority, Queue] = {}
        with answering():
            seconds, micros = self._client.time()
            for priority in get_args(Priority):
                waiting = self._key("waiting", priority)
                oldest: Any = self._client.zrange(waiting, 0, 0, withscores=True)
                age = max(0.0, seconds + micros / 1e6 - oldest[0][1]) if oldest else 0.0
                count: Any = self._client.zcard(waiting)
                found[priority] = Queue(int(count), age)
        return found

    def add_totals(self, amounts: Mapping[str, float]) -> None:
        """See `Ledger.add_totals`."""
        with answering():
            pipeline = self._client.pipeline(transaction=True)
            for key, amount in amounts.items():
                pipeline.hincrbyfloat(self._key("totals"), key, amount)
            pipeline.execute()

    def totals(self) -> dict[str, float]:
        """See `Ledger.totals`."""
        with answering():
            found: Any = self._client.hgetall(self._key("totals"))
        return {key: float(value) for key, value in found.items()}

    def events(self, job_id: str, after: str = "0", limit: int = 100) -> Events:
        """See `Ledger.events`."""
        with answering():
            entries: Any = self._client.xrange(
                self._key("job", job_id, "events"), min=f"({after}", count=limit
            )
        return [decode_event(entry_id, entry) for entry_id, entry in entries]

    def logs(self, job_id: str, after: str = "0", limit: int = 100) -> LogLines:
        """See `Ledger.logs`."""
        with answering():
            entries: Any = self._client.xrange(
                self._key("job", job_id, "logs"), min=f"({after}", count=limit
            )
        return [LogLine(entry_id, **json.loads(entry["line"])) for entry_id, entry in entries]

    def is_intact(self) -> bool:
        """See `Ledger.is_intact`."""
        with answering():
            return bool(self._client.exists(self._key("intact")))

    def mark_intact(self) -> None:
        """See `Ledger.mark_intact`."""
        with answering():
            self._client.set(self._key("intact"), "1")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, job_id: str, verb: Stop) -> JobRecord | None:
        return self.get(job_id) if self._run("request_stop", job_id, verb) else None

    def _run(self, verb: str, *args: str | int | float) -> Any:
        with answering():
            return self._scripts[verb](args=[self._namespace, *args])

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


def _nonce() -> str:
    """Tells a call that the client library repeats from a new one."""
    return secrets.token_hex(8)


def _prelude() -> str:
    """The constants that the scripts share with Python, then their common functions."""
    table = {state: dict.fromkeys(successors, True) for state, successors in TRANSITIONS.items()}
    held = dict.fromkeys(HELD, True)
    constants = (
        f"local TRANSITIONS = cjson.decode('{json.dumps(table)}')\n"
        f"local HELD = cjson.decode('{json.dumps(held)}')\n"
        f"local TERMINAL = cjson.decode('{json.dumps(dict.fromkeys(TERMINAL, True))}')\n"
        f"local EVENTS_KEPT = {EVENTS_KEPT}\n"
        f"local LOGS_KEPT = {LOGS_KEPT}\n"
        f"local HELP_FAILURES = {HELP_FAILURES}\n"
        f"local YIELD_SECONDS = {YIELD_SECONDS}\n"
    )
    return constants + (LUA / "common.lua").read_text()


def _index_of(state: JobState | None, label: tuple[str, str] | None) -> tuple[str, ...]:
    if label is not None:
        return ("label", _label_index(*label))
    return ("state", state) if state is not None else ("all",)


def _instant(seconds: float) -> str:
    """The part of a job's position that its time of creation decides."""
    return f"{max(0, round(seconds * 1_000_000)):016d}"


def _label_index(name: str, value: str) -> str:
    # Quoted, so that no label can pose as another one by holding '=' or ':'.
    return f"{quote(name, safe='')}={quote(value, safe='')}"


@contextmanager
def answering() -> Iterator[None]:
    """Turn the client library's failures into ours."""
    try:
        yield
    except RedisError as error:
        raise LedgerUnavailable(f"The job ledger does not answer ({error}).") from error
