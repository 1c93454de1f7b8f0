"""The pool of helper processes that judge jobs. A helper that took too much is replaced."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from api.inspection.channel import Channel, ChannelBroken, TooLate
from api.inspection.serving import HelperCalls, Reply
from api.inspection.verdict import Verdict, VerdictMessage
from api.jobs.limits import TenantLimits
from strucprune_core.errors import InvalidSpec, StrucPruneError
from strucprune_core.plan.partial import PartialJob
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import Store

_log = logging.getLogger(__name__)

HELPERS = 3
# A start imports the library, perhaps on a busy machine.
_START_SECONDS = 60.0
_END_SECONDS = 5.0
# The variables that a helper gets. The others may hold secrets.
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "SYSTEMROOT")
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    # Arrow's own pools reserve far more address space than they use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class TooCostly(InvalidSpec):
    """Reading the job's files takes more memory or time than those of any usable job."""

    code = "too_costly"


class InspectionUnavailable(StrucPruneError):
    """Jobs cannot be judged at the moment."""

    code = "inspection_unavailable"
    retryable = True
    usual_remedy = "Try again."


@dataclass(frozen=True, slots=True)
class HelperLimits:
    """What judging one job may take.

    Attributes:
        room_bytes: Address space beyond the imports. A model of 70,000 tensors needs a third of the
            default.
        cpu_seconds: Processor time. The largest usable models take two seconds.
        wall_seconds: Time for the helper's own work, without reads. More than its processor time,
            since the machine may be busy.
        total_seconds: Time for everything. A slow store must not keep a helper.
    """

    room_bytes: int = 512 * 2**20
    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    total_seconds: float = 120.0


class Inspectors:
    """A pool of helpers. Safe to share between threads.

    Args:
        count: Most helpers. Each is started when first needed.
        limits: What a helper may take for one job.
    """

    def __init__(self, count: int = HELPERS, limits: HelperLimits | None = None) -> None:
        self.count = count
        self._limits = limits or HelperLimits()
        self._changed = threading.Condition()
        self._idle: list[_Helper] = []
        self._busy = 0
        self._closed = False

    def warm(self) -> None:
        """Start all helpers; does not wait until they are ready."""
        with self._changed:
            while len(self._idle) + self._busy < self.count:
                self._idle.append(_Helper(self._limits))

    def judge(
        self,
        job: JobSpec | PartialJob,
        limits: TenantLimits,
        open_store: Callable[[str], Store],
        *,
        task_downloads: bool = False,
        rates: Mapping[str, DeviceRates] | None = None,
    ) -> Verdict:
        """Judge a job, or what is known of one, whose URIs are allowed.

        Its tasks may use a hub with `task_downloads` only. The verdict has a time for each class
        of workers in `rates`.

        Raises:
            InspectionUnavailable: no helper was free or could be started, or it was too slow.
        """
        helper = self._take()
        spent = True
        try:
            verdict, spent = helper.judge(job, limits, open_store, task_downloads, rates or {})
            return verdict
        finally:
            self._give_back(helper, spent=spent)

    def close(self) -> None:
        """End all helpers. Busy ones end when they are done."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
        for helper in idle:
            helper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> _Helper:
        with self._changed:
            if not self._changed.wait_for(self._has_one, timeout=self._limits.total_seconds):
                raise InspectionUnavailable("Too many jobs are being checked.")
            self._busy += 1
            while self._idle:
                helper = self._idle.pop()
                if helper.alive:
                    return helper
                helper.end()
        try:
            return _Helper(self._limits)
        except BaseException:
            self._left()
            raise

    def _has_one(self) -> bool:
        return bool(self._idle) or self._busy < self.count

    def _give_back(self, helper: _Helper, *, spent: bool) -> None:
        if spent or self._closed:
            helper.end()
            self._left()
            return
        with self._changed:
            self._idle.append(helper)
            self._busy -= 1
            self._changed.notify()

    def _left(self) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify()


class _Helper:
    """One process. Raises InspectionUnavailable if it cannot be started."""

    def __init__(self, limits: HelperLimits) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            try:
                # A new program, not a fork: our memory holds keys and other tenants' data.
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "api.inspection.helper", str(descriptor)),
                        *(str(limits.room_bytes), str(limits.cpu_seconds)),
                    ],
                    pass_fds=[descriptor],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                    | _SETTINGS,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise InspectionUnavailable(f"No helper can be started ({error}).") from error
        # A helper sends calls, which have no payload.
        self._channel = Channel(ours, max_payload_bytes=0)
        self._ready = False

    def judge(
        self,
        job: JobSpec | PartialJob,
        limits: TenantLimits,
        open_store: Callable[[str], Store],
        task_downloads: bool,
        rates: Mapping[str, DeviceRates],
    ) -> tuple[Verdict, bool]:
        """The verdict, and whether the helper is to be replaced."""
        calls = HelperCalls(job, open_store)
        try:
            self._await_ready()
            self._channel.send(
                {
                    "complete": isinstance(job, JobSpec),
                    "spec": job.model_dump(mode="json"),
                    "limits": limits.model_dump(mode="json"),
                    "task_downloads": task_downloads,
                    "rates": {name: each.model_dump(mode="json") for name, each in rates.items()},
                }
            )
            reply = self._serve(calls)
        except TooLate:
            raise InspectionUnavailable(
                "Checking the job took too long.", field=calls.field
            ) from None
        except ChannelBroken as error:
            return self._verdict_on_death(calls, error), True
        if "verdict" in reply:
            return VerdictMessage.model_validate(reply["verdict"]).verdict(), bool(reply["spent"])
        if "over" in reply:
            return _too_costly(calls, "memory"), True
        raise RuntimeError(f"an inspection helper failed: {reply.get('failure')}")

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def _await_ready(self) -> None:
        if not self._ready:
            self._channel.receive(_START_SECONDS)
            self._ready = True

    def _serve(self, calls: HelperCalls) -> dict[str, Any]:
        """Answer the helper's calls until it sends its verdict."""
        ends_at = time.monotonic() + self._limits.total_seconds
        left = self._limits.wall_seconds
        while True:
            began = time.monotonic()
            message, _ = self._channel.receive(min(left, ends_at - began))
            left -= time.monotonic() - began
            if "call" not in message:
                return message
            header, payload = _outcome(calls, message)
            self._channel.send(header, payload)

    def _verdict_on_death(self, calls: HelperCalls, error: ChannelBroken) -> Verdict:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        if not self._ready:
            raise InspectionUnavailable("A helper did not start.") from error
        _log.warning(
            "inspection helper died, exit status %s, while reading %s",
            self._process.returncode,
            calls.field,
        )
        return _too_costly(calls, "memory or time")


def _outcome(calls: HelperCalls, message: dict[str, Any]) -> Reply:
    try:
        return calls.answer(message)
    except StrucPruneError as error:
        return {"error": error.as_dict()}, b""


def _too_costly(calls: HelperCalls, what: str) -> Verdict:
    return Verdict(
        [
            TooCostly(
                f"reading the files there takes more {what} than any usable model or text needs",
                field=calls.field,
                remedy="Check the URI, or save the files again with the usual tools.",
            )
        ]
    )
