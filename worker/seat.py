"""A seat among those that help with a job, and its renewal: what a `Lease` is to the leader."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import Signal
from api.jobs.seats import Place

_log = logging.getLogger(__name__)


class Seat:
    """Renews a seat, and knows when it must be taken for lost.

    Args:
        ledger: Where it was taken.
        place: What was taken, just now.
        lease_seconds: How long it lasts without a beat.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        place: Place,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._place = place
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._renewed_at = clock()

    def beat(self, progress: Mapping[str, Any] | None = None) -> Signal:
        """Keep the seat and hear what to do. The job's progress is its leader's to tell."""
        sent_at = self._clock()
        try:
            signal = self._ledger.seats.beat(self._place, self._lease_seconds)
        except LedgerUnavailable as error:
            _log.warning("no beat for a seat of %s: %s", self._place.job_id, error)
            expired = self._clock() - self._renewed_at > self._lease_seconds
            return Signal.LOST if expired else Signal.CONTINUE
        self._renewed_at = sent_at
        return signal

    def look(self) -> Signal:
        """Hear what to do, renewing nothing; to go on, while the ledger does not answer."""
        try:
            return self._ledger.signal(self._place.job_id, self._place.fence)
        except LedgerUnavailable:
            return Signal.CONTINUE

    def log(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if they should be tried again."""
        place = self._place
        whose = {"run": place.run, "attempt": place.attempt}
        try:
            self._ledger.append_logs(
                place.job_id, place.fence, [{**line, **whose} for line in lines]
            )
        except LedgerUnavailable:
            return False
        return True

    def leave(self, *, failed: bool) -> None:
        """Give it back; without the ledger it lapses."""
        try:
            self._ledger.seats.leave(self._place, failed=failed)
        except LedgerUnavailable as error:
            _log.warning("a seat of %s is left to lapse: %s", self._place.job_id, error)
