"""Supervises a running solve: relays its messages, renews the lease, and stops it on request.

This module decides *when* a solve ends. `conclusion` decides what its end means for the job.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from api.jobs.heartbeat_file import HeartbeatFile
from api.jobs.meters import BYTES_MOVED, PEAK_BYTES, UNIT_SECONDS, Tally
from api.jobs.record import Signal
from api.jobs.tracing import TRACEPARENT, Tracing
from strucprune_core.oom import OomWatch
from strucprune_core.run.artifacts import Weights
from worker.child import SolveProcess
from worker.lease import Lease, Seat
from worker.presence import Presence
from worker.protocol import (
    DeviceMessage,
    ErrorMessage,
    HeldMessage,
    LayersMessage,
    LogMessage,
    Message,
    ProgressMessage,
    ReserveMessage,
    ResultMessage,
    UnitMessage,
)
from worker.settings import Settings
from worker.stop import Drain
from worker.unit_reservations import UnitReservations

_log = logging.getLogger(__name__)

# Log lines kept while the ledger does not answer.
_LINES_KEPT = 500
# The unit that reads the whole model and computes next to nothing: it shows how fast storage is. Of
# less, requests are what takes the time.
_READING, _READ_AT_LEAST = Weights.kind, 32 * 2**20
# How soon a drain or an overdue stop is noticed while the solve is silent.
_TICK_SECONDS = 0.25


class StopReason(StrEnum):
    """Why the supervisor stopped a solve."""

    CANCEL = "cancel"
    PAUSE = "pause"
    LOST = "lost"
    DRAIN = "drain"
    STALLED = "stalled"
    DEADLINE = "deadline"


# Without a grace period: there is nothing to save, or the solve does not react.
_KILL_AT_ONCE = frozenset({StopReason.LOST, StopReason.STALLED})
# Reasons that replace an earlier one. A job that is cancelled while it pauses has nothing to save.
_OVERRULES = {
    StopReason.LOST: frozenset(StopReason) - {StopReason.LOST},
    StopReason.CANCEL: frozenset({StopReason.PAUSE, StopReason.DRAIN}),
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a solve ended.

    Attributes:
        returncode: Exit status, negative if a signal ended it.
        summary: The result, if the solve reported one.
        error: The failure, if the solve reported one.
        stop: Why we stopped it, if we did.
        progress: The last progress that the solve reported.
        oom_killed: Whether the kernel killed a process for lack of memory meanwhile.
    """

    returncode: int
    summary: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    stop: StopReason | None = None
    progress: dict[str, Any] | None = None
    oom_killed: bool = False


class Supervision:
    """The supervision of one solve.

    Args:
        solve: The process.
        hold: The lease or seat under which it works.
        settings: Intervals and limits.
        drain: Set when the worker is to shut down.
        tally: Counts finished units.
        tracing: Records a span for each unit, below the present span.
        deadline_seconds: Seconds that the job may still run, or None.
        reservations: Reserves units where several workers serve the job, else None.
        presence: Shows operators what the worker is at; None for nobody.
    """

    def __init__(
        self,
        solve: SolveProcess,
        hold: Lease | Seat,
        settings: Settings,
        drain: Drain,
        tally: Tally,
        tracing: Tracing,
        deadline_seconds: float | None,
        reservations: UnitReservations | None = None,
        presence: Presence | None = None,
    ) -> None:
        self._solve = solve
        self._presence = presence
        self._hold = hold
        self._reservations = reservations
        self._settings = settings
        self._heartbeat_file = HeartbeatFile(settings.heartbeat_file)
        self._drain = drain
        self._tally = tally
        self._tracing = tracing
        now = time.monotonic()
        self._deadline = None if deadline_seconds is None else now + deadline_seconds
        self._last_message_at = self._last_beat_at = self._checked_at = now
        self._oom = OomWatch()
        self._lines: deque[dict[str, Any]] = deque(maxlen=_LINES_KEPT)
        # A few for each layer, so it needs no limit.
        self._layers: list[dict[str, Any]] = []
        self._kill_at = math.inf
        self._stop: StopReason | None = None
        self._progress: dict[str, Any] | None = None
        self._progress_is_new = False
        self._summary: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None

    def watch(self) -> Ended:
        """Watch until the solve has ended."""
        self._show()
        while (messages := self._solve.receive(_TICK_SECONDS)) is not None:
            for message in messages:
                self._take(message)
            self._beat_if_due()
            self._heartbeat_file.beat()
            self._check_if_due()
            self._stop_if_due()
            self._kill_if_due()
        returncode = self._solve.wait()
        self._flush()
        if self._presence is not None:
            self._presence.rest()
        return Ended(
            returncode,
            self._summary,
            self._error,
            self._stop,
            self._progress,
            oom_killed=returncode < 0 and self._oom.fired(),
        )

    def _take(self, message: Message) -> None:
        self._last_message_at = time.monotonic()
        match message:
            case ProgressMessage(progress=progress):
                self._progress, self._progress_is_new = progress, True
            case DeviceMessage(device=device, threads=threads):
                if self._presence is not None:
                    self._presence.computes_with(device, threads)
            case ResultMessage(summary=summary):
                self._summary = summary
            case ErrorMessage(error=error):
                self._error = error
            case UnitMessage():
                self._count(message)
            case ReserveMessage(ready=ready, keeping=keeping):
                if self._reservations is not None:
                    self._solve.answer(self._reservations.answer(ready, keeping))
            case HeldMessage():
                if self._reservations is not None:
                    self._solve.answer(self._reservations.held())
            case LayersMessage(layers=layers):
                self._layers.append(layers)
            case LogMessage():
                self._lines.append(message.model_dump(exclude={"type"}))

    def _beat_if_due(self) -> None:
        since = time.monotonic() - self._last_beat_at
        early = self._progress_is_new and since >= self._settings.progress_seconds
        if not early and since < self._settings.heartbeat_seconds:
            return
        signal = self._hold.beat(self._progress)
        self._last_beat_at, self._progress_is_new = time.monotonic(), False
        self._show()
        self._obey(signal)
        # A solve that reports all the time leaves `_check_if_due` no turn.
        self._flush()

    def _show(self) -> None:
        if self._presence is not None:
            part = "help" if isinstance(self._hold, Seat) else "lead"
            self._presence.work(self._hold.job_id, part, self._progress)

    def _check_if_due(self) -> None:
        """Check for a stop between heartbeats, which are far apart while the solve is silent."""
        latest = max(self._last_beat_at, self._checked_at)
        if time.monotonic() - latest >= self._settings.signal_seconds:
            self._checked_at = time.monotonic()
            self._obey(self._hold.check())
            self._flush()

    def _obey(self, signal: Signal) -> None:
        if signal is not Signal.CONTINUE:
            self._ask_to_stop(StopReason(signal.value))

    def _stop_if_due(self) -> None:
        now = time.monotonic()
        if self._drain.started:
            self._ask_to_stop(StopReason.DRAIN)
        if self._deadline is not None and now > self._deadline:
            self._ask_to_stop(StopReason.DEADLINE)
        if now - self._last_message_at > self._settings.stall_seconds:
            self._ask_to_stop(StopReason.STALLED)

    def _ask_to_stop(self, reason: StopReason) -> None:
        """Ask the solve to stop. The first reason stays unless a later one overrules it."""
        kill_at = time.monotonic() + self._grace_seconds(reason)
        if self._stop is None:
            self._solve.terminate()
        elif self._stop not in _OVERRULES.get(reason, ()):
            return
        self._stop, self._kill_at = reason, min(self._kill_at, kill_at)
        _log.info("stopping solve %d: %s", self._solve.pid, reason.value)

    def _count(self, unit: UnitMessage) -> None:
        self._tally.observe(UNIT_SECONDS, unit.seconds, unit.kind)
        peaks = (("host", unit.host_peak_bytes), ("device", unit.device_peak_bytes))
        for place, peak_bytes in peaks:
            if peak_bytes is not None:
                self._tally.observe(PEAK_BYTES, float(peak_bytes), place)
        parent = TRACEPARENT.get()
        if parent is not None:
            about = {"unit.kind": unit.kind, "unit.name": unit.name}
            self._tracing.record(f"unit {unit.kind}", parent, unit.began_at, unit.seconds, about)
        if unit.kind == _READING and unit.read_bytes >= _READ_AT_LEAST and self._presence:
            self._presence.reads(unit.read_bytes / unit.seconds)
        self._tally.count(BYTES_MOVED, "worker", by=float(unit.read_bytes))
        self._tally.count(BYTES_MOVED, "store", by=float(unit.written_bytes))

    def _grace_seconds(self, reason: StopReason) -> float:
        if reason in _KILL_AT_ONCE:
            return 0.0
        if reason is StopReason.CANCEL:
            return min(self._settings.cancel_grace_seconds, self._settings.grace_seconds)
        return self._settings.grace_seconds

    def _flush(self) -> None:
        """Send metrics, log lines and results for layers to the ledger."""
        self._tally.flush()
        lines = [*self._lines]
        if lines and self._hold.log(lines):
            self._lines.clear()
        if self._layers and self._hold.report_layers(self._layers):
            self._layers.clear()

    def _kill_if_due(self) -> None:
        if time.monotonic() >= self._kill_at:
            self._solve.kill()
