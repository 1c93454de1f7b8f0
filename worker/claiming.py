"""Answers a solve that asks which unit to do: from the claims in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from api.jobs.doorbell import Doorbell
from api.jobs.ledger import ANY_NUMBER, LedgerUnavailable
from api.jobs.limits import RunningLimits
from api.jobs.seats import LEADER, Seats
from worker.protocol import Answer

_log = logging.getLogger(__name__)


class Claiming:
    """The claims of one solve on the units of a job that others may serve too.

    Args:
        seats: Where claims are kept.
        doorbell: Rung where more workers would find something to do.
        job_id: The job.
        fence: Of the attempt.
        holder: The solve's seat; `LEADER` if it leads.
        free_bytes: The room that this worker has for temporary files; of a helper.
        limits: How many jobs tenants may have running; of a helper.
    """

    def __init__(
        self,
        seats: Seats,
        doorbell: Doorbell,
        job_id: str,
        fence: int,
        holder: str = LEADER,
        free_bytes: Callable[[], int] = lambda: 0,
        limits: RunningLimits = ANY_NUMBER,
    ) -> None:
        self._seats = seats
        self._doorbell = doorbell
        self._job_id = job_id
        self._fence = fence
        self._holder = holder
        self._free_bytes = free_bytes
        self._limits = limits

    def answer(self, ready: Sequence[str], keeping: str | None = None) -> Answer:
        """Claim the first of these units that nobody else has, besides the one that is kept.

        Without the ledger nothing can be claimed. A leader goes on all the same, perhaps with what
        another does too; a helper waits. Whether the attempt is lost meanwhile, the lease or the
        seat tells.
        """
        try:
            claim = self._seats.claim_unit(
                *(self._job_id, self._fence, self._holder, ready, keeping),
                *(self._free_bytes(), self._limits),
            )
        except LedgerUnavailable as error:
            _log.warning("no claims on units of %s: %s", self._job_id, error)
            leads = self._holder == LEADER
            return Answer(go=True, unit=ready[0] if leads and ready else None)
        if claim.bells:
            self._doorbell.ring_for_help(self._job_id, claim.bells)
        return Answer(go=claim.word == "go", unit=claim.unit)
