"""Renewal of what a worker holds of a job: its lease if it leads the job, its seat if it helps."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import Claim, Signal
from api.jobs.seats import Place

_log = logging.getLogger(__name__)

Held = TypeVar("Held", Claim, Place)


class Holding(ABC, Generic[Held]):
    """Renews a lease or a seat, and decides when it counts as lost.

    Args:
        ledger: The ledger that granted it.
        held: What was granted, just now.
        lease_seconds: How long it lasts unless it is renewed.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        held: Held,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._held: Held = held
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._renewed_at = clock()

    @abstractmethod
    def _renew(self, progress: Mapping[str, Any] | None) -> Signal:
        """Renew it in the ledger."""

    @property
    def job_id(self) -> str:
        """The job."""
        return self._held.job_id

    def beat(self, progress: Mapping[str, Any] | None = None) -> Signal:
        """Renew it, and return what to do.

        While the ledger does not answer, the work goes on until the lease must be over by our own
        clock: then another worker may hold the job.
        """
        sent_at = self._clock()
        try:
            signal = self._renew(progress)
        except LedgerUnavailable as error:
            _log.warning("no heartbeat for %s: %s", self._held.job_id, error)
            expired = self._clock() - self._renewed_at > self._lease_seconds
            return Signal.LOST if expired else Signal.CONTINUE
        # Counted from before the request: the server's lease starts no earlier.
        self._renewed_at = sent_at
        return signal

    def check(self) -> Signal:
        """What to do, without a renewal; to continue while the ledger does not answer."""
        try:
            return self._ledger.signal(self._held.job_id, self._held.fence)
        except LedgerUnavailable:
            return Signal.CONTINUE

    def log(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if the caller should try again."""
        held = self._held
        whose = {"run": held.run, "attempt": held.attempt}
        try:
            self._ledger.append_logs(held.job_id, held.fence, [{**line, **whose} for line in lines])
        except LedgerUnavailable:
            return False
        return True

    def report_layers(self, updates: Sequence[Mapping[str, Any]]) -> bool:
        """Add results for layers to the job's events. False if the caller should try again."""
        try:
            self._ledger.append_layers(self._held.job_id, self._held.fence, updates)
        except LedgerUnavailable:
            return False
        return True


class Lease(Holding[Claim]):
    """A claim on a job. Its holder leads the job."""

    def _renew(self, progress: Mapping[str, Any] | None) -> Signal:
        held = self._held
        return self._ledger.heartbeat(held.job_id, held.fence, self._lease_seconds, progress)


class Seat(Holding[Place]):
    """A seat of a worker that helps with a job. Progress is reported by the job's leader only."""

    def _renew(self, progress: Mapping[str, Any] | None) -> Signal:
        return self._ledger.seats.beat(self._held, self._lease_seconds)

    def leave(self, *, failed: bool) -> None:
        """Give the seat back. If the ledger does not answer, it lapses."""
        try:
            self._ledger.seats.leave(self._held, failed=failed)
        except LedgerUnavailable as error:
            _log.warning("cannot leave a seat of %s, it will lapse: %s", self._held.job_id, error)
