"""What a worker holds of a job, and its renewal: the lease of its leader, or a helper's seat."""

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
    """Renews what is held, and knows when it must be taken for lost.

    Args:
        ledger: Where it was taken.
        held: What was taken, just now.
        lease_seconds: How long it lasts without a beat.
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

    def beat(self, progress: Mapping[str, Any] | None = None) -> Signal:
        """Renew it and hear what to do.

        While the ledger does not answer the work goes on, until by our own clock the lease must be
        over: then somebody else may have the job.
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

    def look(self) -> Signal:
        """Hear what to do, renewing nothing; to go on, while the ledger does not answer."""
        try:
            return self._ledger.signal(self._held.job_id, self._held.fence)
        except LedgerUnavailable:
            return Signal.CONTINUE

    def log(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if they should be tried again."""
        held = self._held
        whose = {"run": held.run, "attempt": held.attempt}
        try:
            self._ledger.append_logs(held.job_id, held.fence, [{**line, **whose} for line in lines])
        except LedgerUnavailable:
            return False
        return True

    def tell_layers(self, news: Sequence[Mapping[str, Any]]) -> bool:
        """Tell those who follow the job about layers. False if that should be tried again."""
        try:
            self._ledger.append_layers(self._held.job_id, self._held.fence, news)
        except LedgerUnavailable:
            return False
        return True


class Lease(Holding[Claim]):
    """A claim on a job: whoever holds it leads the job."""

    def _renew(self, progress: Mapping[str, Any] | None) -> Signal:
        held = self._held
        return self._ledger.heartbeat(held.job_id, held.fence, self._lease_seconds, progress)


class Seat(Holding[Place]):
    """A seat among those that help with a job. The job's progress is its leader's to tell."""

    def _renew(self, progress: Mapping[str, Any] | None) -> Signal:
        return self._ledger.seats.beat(self._held, self._lease_seconds)

    def leave(self, *, failed: bool) -> None:
        """Give it back; without the ledger it lapses."""
        try:
            self._ledger.seats.leave(self._held, failed=failed)
        except LedgerUnavailable as error:
            _log.warning("a seat of %s is left to lapse: %s", self._held.job_id, error)
