"""The job ledger in Redis or Valkey: the state of every job, and who may change it now.

Each verb is one Lua script (`lua/`), so check, change, indexes and event are one atomic step. Each
verb may be repeated, as the client library does with a call whose answer was lost. Verbs that a
running job needs, and verbs that end or remove jobs, also write when Redis has reached its
`maxmemory` (flag `allow-oom`), since they add little. All times are the server's. The ledger holds
live state only: what must survive a loss of Redis is in the `Journal`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import OutOfMemoryError, RedisError
from redis.retry import Retry

from api.jobs.codec import (
    LUA,
    NAMESPACE,
    decode_event,
    decode_job,
    decode_jobs,
    decode_outlook,
    decode_worker,
    encode,
    encode_job,
)
from api.jobs.limits import KeptLimits, RunningLimits
from api.jobs.record import (
    Claim,
    ClaimResult,
    JobEvent,
    JobRecord,
    LogLine,
    NewJob,
    Outlook,
    Page,
    Priority,
    Queue,
    Refusal,
    Signal,
    WorkerRecord,
)
from api.jobs.seats import HELP_FAILURES, YIELD_SECONDS, Seats
from api.jobs.state import HELD, TERMINAL, TRANSITIONS, JobState
from strucprune_core.errors import StrucPruneError
from strucprune_core.plan.rates import DeviceRates

# Newest events kept of a job: some 200 kB (about 10 bytes of Redis memory for each byte of JSON).
EVENTS_KEPT = 1000
# Newest log lines kept of a job. A unit of work logs a few lines of at most 1000 characters.
LOGS_KEPT = 1000
# Jobs searched for a page of those with a label, which takes about a millisecond of the server.
LABELS_LOOKED_AT = 1000
# From the check of a quota until the job is in the ledger, with requests to the object store.
RESERVATION_SECONDS = 60.0
# A worker that is silent for so long is no longer counted. It speaks every ten seconds.
WORKER_SECONDS = 60.0
# How long the rates of a class of workers stay known: a pool may be scaled to none for weeks.
CLASS_SECONDS = 30 * 86400.0
# Jobs that are looked at to say when another one starts.
OUTLOOK_JOBS = 200
# If Redis does not answer, a request fails with `LedgerUnavailable` after three quick tries.
SOCKET_TIMEOUT_SECONDS = 5.0
RETRIES = 2
RETRY_CAP_SECONDS = 0.5
# For callers without limits.
ANY_NUMBER = RunningLimits()
ANY_SIZE = 2**62
# Scripts that use no shared functions.
_ALONE = frozenset({"read_jobs"})
# Files that all other scripts begin with. They are no verbs.
_SHARED = frozenset({"clock", "common"})
# Lua that defines `now()` for the scripts.
SERVER_CLOCK = (LUA / "clock.lua").read_text()

# Named here because the ledger's method `list` hides the built-in inside the class body.
JobIds = list[str]
Events = list[JobEvent]
LogLines = list[LogLine]
Ends = list[tuple[str, int]]
Workers = list[WorkerRecord]
Classes = list[tuple[str, DeviceRates]]
Finished = Literal[JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
Stop = Literal["cancel", "pause", "resume"]


class LedgerUnavailable(StrucPruneError):
    """Redis does not answer. The same request may succeed later."""

    code: ClassVar[str] = "ledger_unavailable"
    retryable: ClassVar[bool] = True


class LedgerFull(LedgerUnavailable):
    """Redis has no memory for new data. Running jobs go on."""

    code: ClassVar[str] = "ledger_full"


def connect(
    redis_url: str,
    namespace: str = NAMESPACE,
    clock: str = SERVER_CLOCK,
    *,
    patience_seconds: float = SOCKET_TIMEOUT_SECONDS,
    retries: int = RETRIES,
) -> Ledger:
    """The ledger at a Redis URL. Connects when first used.

    Args:
        redis_url: Of the server.
        namespace: Prefix of every key.
        clock: See `Ledger`.
        patience_seconds: How long to wait for each answer.
        retries: How often to repeat a call without an answer.
    """
    client = redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        socket_timeout=patience_seconds,
        socket_connect_timeout=patience_seconds,
        retry=Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_SECONDS), retries),
    )
    return Ledger(client, namespace, clock)


class Ledger:
    """The live state of all jobs, on one Redis or Valkey server (not a cluster).

    Every method raises `LedgerUnavailable` if the server does not answer, `LedgerFull` if it takes
    no new data. Threads may share a ledger.

    Attributes:
        seats: Who helps with which job.

    Args:
        client: A client with `decode_responses=True`.
        namespace: Prefix of every key.
        clock: Lua code that defines `now()`. Tests replace it by a clock that they can set.
    """

    def __init__(
        self, client: redis.Redis, namespace: str = NAMESPACE, clock: str = SERVER_CLOCK
    ) -> None:
        self._client = client
        self._namespace = namespace
        prelude = _prelude(clock)
        self._scripts = {
            path.stem: client.register_script(
                _script(path.read_text(), "" if path.stem in _ALONE else prelude)
            )
            for path in sorted(LUA.glob("*.lua"))
            if path.stem not in _SHARED
        }
        self.seats = Seats(self._run)

    def create(self, new: NewJob) -> bool:
        """Enter a new job as queued. False, and nothing changed, if it exists already."""
        position = f"{_instant(new.created_at)}:{new.id}"
        return bool(self._run("create", new.id, position, *encode_job(new)))

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""
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
        """A page of a tenant's jobs, newest first. The times are unix seconds, both exclusive.

        Every page costs the same. With a label, or when jobs change state meanwhile, a page may
        hold fewer than `limit` jobs and still have a successor.
        """
        index = f"state:{state}" if state is not None else "all"
        newer = [cursor] if cursor else []
        if created_before is not None:
            newer.append(_instant(created_before))
        newest = f"({min(newer)}" if newer else "+"
        # ';' follows ':', so this is after every job of that microsecond.
        oldest = f"({_instant(created_after)};" if created_after is not None else "-"
        if label is not None:
            bounds = (newest, oldest, limit, LABELS_LOOKED_AT, json.dumps(label))
            after, *positions = self._run("find_labelled", tenant, index, *bounds)
        else:
            with answering():
                positions = self._client.zrevrangebylex(
                    self._key("tenant", tenant, index), newest, oldest, 0, limit + 1
                )
            after = positions[limit - 1] if len(positions) > limit else None
        ids = [position.split(":", 1)[1] for position in positions[:limit]]
        found = decode_jobs(self._run("read_jobs", *ids))
        jobs = [job for job in found if job and (state is None or job.state == state)]
        return Page(jobs, after or None)

    def claim(
        self,
        worker_id: str,
        lease_seconds: float,
        limits: RunningLimits = ANY_NUMBER,
        free_bytes: int = ANY_SIZE,
    ) -> ClaimResult:
        """Claim the next job, or return why there is none.

        First a tenant is chosen, of those with queued jobs: the one that the fewest workers serve,
        and of several such tenants the one that was served longest ago. So a tenant that no worker
        serves waits for at most one job of each other tenant. Of the tenant's jobs, the next is
        the oldest of the highest priority.

        Args:
            worker_id: Name of the worker, for people.
            lease_seconds: How long the claim lasts without a heartbeat.
            limits: How many jobs tenants may have running. Tenants at their limit are skipped.
            free_bytes: The worker's space for temporary files. Jobs that need more are skipped.
        """
        word, claim, job, left = self._run(
            "claim", worker_id, lease_seconds, _nonce(), limits.encode(), free_bytes
        )
        if word != "claimed":
            return ClaimResult(Refusal(word), None, tuple(left))
        job_id, fence, attempt, run, rest = claim
        seconds_left = float(rest) if rest else None
        held = Claim(job_id, int(fence), int(attempt), int(run), seconds_left)
        return ClaimResult(held, decode_job(job), tuple(left))

    def heartbeat(
        self,
        job_id: str,
        fence: int,
        lease_seconds: float,
        progress: Mapping[str, Any] | None = None,
    ) -> Signal:
        """Renew the lease, store the progress, and return whether to stop.

        After `LOST` the caller must stop at once: another worker may hold the job, or it has ended.
        """
        return Signal(self._run("heartbeat", job_id, fence, lease_seconds, encode(progress)))

    def signal(self, job_id: str, fence: int) -> Signal:
        """What a heartbeat would return, without renewing the lease. Costs much less."""
        return Signal(self._run("signal", job_id, fence))

    def append_logs(self, job_id: str, fence: int, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if `fence` is stale.

        Each line has the fields of `LogLine` except the id.
        """
        return bool(self._run("append_logs", job_id, fence, *map(encode, lines)))

    def append_layers(self, job_id: str, fence: int, updates: Sequence[Mapping[str, Any]]) -> bool:
        """Add an event `layers` for each update (see `JobEvent`). False if `fence` is stale.

        Adding the same update twice does no harm.
        """
        return bool(self._run("append_layers", job_id, fence, *map(encode, updates)))

    def release(
        self,
        job_id: str,
        fence: int,
        error: Mapping[str, Any] | None = None,
        *,
        rests: bool = False,
    ) -> bool:
        """Give the job back at a safe point; the attempt does not count.

        A running job becomes queued, a pausing one paused, a cancelling one cancelled. False if
        `fence` is stale.

        Args:
            job_id: The job.
            fence: Fence of the claim.
            error: Why the worker gives it back, if that should be the error of the queued job.
            rests: Whether no worker may claim it for a while (see `end_rests`).
        """
        rest = "1" if rests else ""
        return bool(self._run("release", job_id, fence, _nonce(), encode(error), rest))

    def decline(self, job_id: str, error: Mapping[str, Any], seconds: float) -> bool:
        """Note on a job that has been queued for `seconds` why a worker does not claim it.

        False, and nothing changed, if it was queued later, or has the note already.
        """
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
        """End the job, after its outcome is in the journal.

        False if `fence` is stale or the state forbids it (only a requested cancel may end so).
        """
        return bool(self._run("finish", job_id, fence, state, encode(error), encode(summary)))

    def retry_later(
        self,
        job_id: str,
        fence: int,
        error: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
    ) -> JobState:
        """Report a retryable failure: queued while attempts are left, else failed.

        No worker may claim a queued job until its rest ends (see `end_rests`). If a cancellation
        or a pause was requested, the job is cancelled or paused instead. `plan`, if given, is for
        the next attempts of this run (see `JobRecord`).

        Returns:
            The state afterwards. Under a stale fence nothing changes. A job that the ledger has
            lost counts as queued, because the rebuild will queue it.
        """
        state = self._run("retry_later", job_id, fence, encode(error), encode(plan))
        return JobState(state or JobState.QUEUED)

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """Cancel at once if no worker holds the job, else ask its worker to. The job afterwards.

        A job that has ended stays as it is.
        """
        return self._request(job_id, "cancel")

    def request_pause(self, job_id: str) -> JobRecord | None:
        """Pause at once if no worker holds the job, else ask its worker to. The job afterwards."""
        return self._request(job_id, "pause")

    def resume(self, job_id: str) -> JobRecord | None:
        """Queue a paused job again, or withdraw a pause. The job afterwards."""
        return self._request(job_id, "resume")

    def reopen(self, job_id: str, run: int) -> bool:
        """Queue a job again whose run `run` failed or was cancelled. True if its next run exists.

        Attempts and the deadline of the new run start anew.
        """
        return bool(self._run("reopen", job_id, run))

    def forget(self, job_id: str, run: int | None = None) -> bool:
        """Remove an ended job, in this run if `run` is given. True if the job is gone."""
        return bool(self._run("forget", job_id, "" if run is None else run))

    def kept(self, tenant: str) -> tuple[int, int]:
        """How many jobs of the tenant are in the ledger, and how many bytes they take."""
        with answering():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.zcard(self._key("tenant", tenant, "all"))
            pipeline.hget(self._key("kept"), tenant)
            jobs, size_bytes = pipeline.execute()
        return int(jobs), int(size_bytes or 0)

    def crowded(self, limits: KeptLimits, share: float, limit: int) -> JobIds:
        """Ended jobs to archive, so that tenants come down to this share of their limits.

        These are the oldest of each tenant, without those that have webhooks to send.
        """
        return [*self._run("crowded", limits.encode(), share, limit)]

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
        """Copy a run's outcome from the journal, whatever the state. True if that changed the job.

        Changes nothing if the job is in another run.
        """
        at = f"{finished_at:.6f}"
        return bool(self._run("settle", job_id, state, encode(error), encode(summary), at, run))

    def expired(self, limit: int) -> JobIds:
        """Jobs whose lease has expired. Changes nothing."""
        return [*self._run("expired", limit)]

    def requeue_expired(self, limit: int) -> JobIds:
        """Take back jobs whose lease has expired. Returns the ids of those that changed state.

        A job is queued while attempts are left, else failed with `worker_lost`. It is cancelled or
        paused if that was requested.
        """
        return [*self._run("requeue_expired", limit)]

    def overdue(self, limit: int) -> JobIds:
        """Fail jobs whose deadline has passed while no worker holds them. Returns their ids."""
        return [*self._run("overdue", limit)]

    def ended_longer_than(self, seconds: float, limit: int) -> JobIds:
        """Jobs that ended this long ago, the earliest end first."""
        return [*self._run("ended_longer_than", seconds, limit)]

    def ended_within(self, seconds: float, limit: int) -> Ends:
        """Jobs that ended in the last seconds, each with its run, the latest end first."""
        found = [*self._run("ended_within", seconds, limit)]
        return [(job_id, int(run)) for job_id, run in zip(found[::2], found[1::2], strict=True)]

    def hold_role(self, role: str, holder: str, seconds: int) -> bool:
        """Take a role that one process at a time may have, or keep it for so long from now.

        False if another holder has it.
        """
        return bool(self._run("hold_role", role, holder, seconds))

    def reserve(self, tenant: str, job_id: str, limit: int) -> bool:
        """Reserve one of `limit` places among the tenant's jobs that have not ended.

        False if none is free. Entering or queueing the job uses the place. If neither happens
        within `RESERVATION_SECONDS`, the place is free again.
        """
        return bool(self._run("reserve", tenant, job_id, limit, RESERVATION_SECONDS))

    def reserve_output(self, job_id: str, output: str) -> str | None:
        """Reserve an output (see `place_of`) for a job that is about to be queued.

        A job has its output until it ends. If the job is not queued within `RESERVATION_SECONDS`,
        the output is free again.

        Returns:
            The id of another job that has this output, one that contains it or one inside it. None
            if the output is reserved.
        """
        return self._run("reserve_output", job_id, output, RESERVATION_SECONDS) or None

    def free_output(self, job_id: str, output: str) -> None:
        """Give up a reservation that `reserve_output` made. A queued job keeps its output."""
        self._run("free_output", job_id, output)

    def output_holder(self, output: str) -> str | None:
        """The id of a job that has this output, one that contains it or one inside it, or None."""
        return self._run("output_holder", output) or None

    def take_token(self, tenant: str, per_second: float, most: int) -> float:
        """Take a token from the tenant's bucket. Returns 0.0, or the seconds until there is one."""
        return float(self._run("take_token", tenant, per_second, most))

    def queued(self) -> int:
        """How many jobs are queued, without those that rest."""
        with answering():
            pipeline = self._client.pipeline(transaction=False)
            for priority in get_args(Priority):
                pipeline.zcard(self._key("queued", priority))
            pipeline.zcard(self._key("resting"))
            *queued, resting = pipeline.execute()
        return int(sum(queued) - resting)

    def queued_longer_than(self, seconds: float, limit: int) -> JobIds:
        """Jobs queued this long, the longest wait first. Being returned restarts their wait."""
        return [*self._run("queued_longer_than", seconds, limit)]

    def end_rests(self, seconds: float, limit: int) -> JobIds:
        """Let workers claim jobs that have rested this long after a failure. Returns their ids."""
        return [*self._run("end_rests", seconds, limit)]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with answering():
            found: Any = self._client.hgetall(self._key("counts"))
        return {state.value: int(found.get(state.value, 0)) for state in JobState}

    def queues(self) -> dict[Priority, Queue]:
        """The queued jobs of each priority."""
        found: dict[Priority, Queue] = {}
        now = self.now()
        with answering():
            for priority in get_args(Priority):
                waiting = self._key("waiting", priority)
                oldest: Any = self._client.zrange(waiting, 0, 0, withscores=True)
                age = max(0.0, now - oldest[0][1]) if oldest else 0.0
                count: Any = self._client.zcard(waiting)
                found[priority] = Queue(int(count), age)
        return found

    def add_totals(self, amounts: Mapping[str, float]) -> None:
        """Add to totals by key, all or none (see `meters`)."""
        with answering():
            pipeline = self._client.pipeline(transaction=True)
            for key, amount in amounts.items():
                pipeline.hincrbyfloat(self._key("totals"), key, amount)
            pipeline.execute()

    def totals(self) -> dict[str, float]:
        """The totals, by key."""
        with answering():
            found: Any = self._client.hgetall(self._key("totals"))
        return {key: float(value) for key, value in found.items()}

    def note_worker(self, name: str, fields: Mapping[str, str]) -> None:
        """Note that a worker is there, and what it says of itself (see `WorkerRecord`)."""
        flat = [text for pair in fields.items() for text in pair]
        self._run("note_worker", name, WORKER_SECONDS, CLASS_SECONDS, *flat)

    def forget_worker(self, name: str) -> None:
        """Note that a worker has ended."""
        self._run("forget_worker", name)

    def workers(self) -> Workers:
        """The workers that are there, by name."""
        return [decode_worker(*each) for each in json.loads(self._run("workers", WORKER_SECONDS))]

    def past_classes(self) -> Classes:
        """Pools that have had a worker within the last month, with the rates of its device."""
        with answering():
            found: Any = self._client.hgetall(self._key("classes"))
        return [
            (json.loads(mark)[0], DeviceRates.model_validate_json(rates))
            for mark, rates in sorted(found.items())
        ]

    def outlook(
        self, job_id: str, tenant: str, priority: Priority, limits: RunningLimits
    ) -> Outlook | None:
        """Where a queued job stands, and what decides when it starts; None if it is not queued.

        An estimate: jobs that come, end or change, and workers that take part, move it.

        Args:
            job_id: The job; "" for one that the tenant might submit now.
            tenant: Its tenant.
            priority: Its priority.
            limits: How many jobs tenants may have running.
        """
        return decode_outlook(
            self._run(
                *("outlook", job_id, tenant, priority, limits.encode()),
                *(WORKER_SECONDS, OUTLOOK_JOBS),
            )
        )

    def open_and_held(self, tenant: str) -> tuple[int, int]:
        """How many jobs of the tenant have not ended, and how many of them workers hold."""
        open_states = [state for state in JobState if state not in TERMINAL]
        with answering():
            pipeline = self._client.pipeline(transaction=False)
            for state in open_states:
                pipeline.zcard(self._key("tenant", tenant, "state", state))
            found = dict(zip(open_states, pipeline.execute(), strict=True))
        return sum(found.values()), sum(found[state] for state in open_states if state in HELD)

    def events(self, job_id: str, after: str = "0", limit: int = 100) -> Events:
        """Events of the job after event `after`, oldest first."""
        with answering():
            entries: Any = self._client.xrange(
                self._key("job", job_id, "events"), min=f"({after}", count=limit
            )
        return [decode_event(entry_id, entry) for entry_id, entry in entries]

    def logs(self, job_id: str, after: str = "0", limit: int = 100) -> LogLines:
        """Log lines of the job after line `after`, oldest first."""
        with answering():
            entries: Any = self._client.xrange(
                self._key("job", job_id, "logs"), min=f"({after}", count=limit
            )
        return [LogLine(entry_id, **json.loads(entry["line"])) for entry_id, entry in entries]

    def is_intact(self) -> bool:
        """Whether every journalled job is in the ledger; False in a new or flushed Redis."""
        with answering():
            return bool(self._client.exists(self._key("intact")))

    def mark_intact(self) -> None:
        """Note that every journalled job is in the ledger."""
        self._run("mark_intact")

    def now(self) -> float:
        """Unix seconds by the server's clock, the only one that all processes share."""
        return float(self._run("now"))

    def probe(self) -> None:
        """Return if the ledger takes new data.

        Raises:
            LedgerFull: Redis has no memory left.
            LedgerUnavailable: Redis does not answer.
        """
        with answering():
            self._client.set(self._key("probe"), "1", ex=60)

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
    """A random id of one call, by which a script recognises that the client library repeats it."""
    return secrets.token_hex(8)


def _script(text: str, prelude: str) -> str:
    """The script of a verb, with the prelude below its first line, which must be the flags."""
    flags, _, body = text.partition("\n")
    return f"{flags}\n{prelude}{body}"


def script_of(verb: str) -> str:
    """The script of a verb, for another client than the ledger's own."""
    return _script((LUA / f"{verb}.lua").read_text(), _prelude(SERVER_CLOCK))


def _prelude(clock: str) -> str:
    """The constants that the scripts share with Python, their clock and their common functions."""
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
    return constants + clock + (LUA / "common.lua").read_text()


def _instant(seconds: float) -> str:
    """The part of a job's position that comes from its time of creation."""
    return f"{max(0, round(seconds * 1_000_000)):016d}"


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of the client library into `LedgerUnavailable` and `LedgerFull`."""
    try:
        yield
    except OutOfMemoryError as error:
        raise LedgerFull(
            "The job ledger takes no new data: its Redis has reached `maxmemory`."
        ) from error
    except RedisError as error:
        raise LedgerUnavailable(f"The job ledger does not answer ({error}).") from error
