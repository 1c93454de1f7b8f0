"""A claim on a job, and its renewal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import Claim, Signal

_log = logging.getLogger(__name__)


class Lease:
    """Renews a claim, and knows when it must be taken for lost.

    Args:
        ledger: Where the claim was made.
        claim: What was claimed, just now.
        lease_seconds: How long a claim lasts without a heartbeat.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._claim = claim
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._renewed_at = clock()

    def beat(self, progress: Mapping[str, Any] | None = None) -> Signal:
        """Renew the lease and hear what to do.

        While the ledger does not answer the work goes on, until by our own clock the lease must be
        over: then somebody else may have the job.
        """
        sent_at = self._clock()
        try:
            signal = self._ledger.heartbeat(
                self._claim.job_id, self._claim.fence, self._lease_seconds, progress
            )
        except LedgerUnavailable as error:
            _log.warning("no heartbeat for %s: %s", self._claim.job_id, error)
            expired = self._clock() - self._renewed_at > self._lease_seconds
            return Signal.LOST if expired else Signal.CONTINUE
        # Counted from before the request: the server's lease starts no earlier.
        self._renewed_at = sent_at
        return signal

    def look(self) -> Signal:
        """Hear what to do, renewing nothing; to go on, while the ledger does not answer."""
        try:
            return self._ledger.signal(self._claim.job_id, self._claim.fence)
        except LedgerUnavailable:
            return Signal.CONTINUE

    def log(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Add lines to the job's log. False if they should be tried again."""
        whose = {"run": self._claim.run, "attempt": self._claim.attempt}
        try:
            self._ledger.append_logs(
                self._claim.job_id, self._claim.fence, [{**line, **whose} for line in lines]
            )
        except LedgerUnavailable:
            return False
        return True
