"""Reserves units of a job in the ledger for a solve that asks which unit to do next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from api.jobs.doorbell import Doorbell
from api.jobs.ledger import ANY_NUMBER, LedgerUnavailable
from api.jobs.limits import RunningLimits
from api.jobs.seats import LEADER, Seats
from worker.protocol import Answer, Held

_log = logging.getLogger(__name__)


class UnitReservations:
    """The reservations of one solve, for a job that several workers may serve.

    Args:
        seats: Where reservations are kept.
        doorbell: Rung where more workers would find units to do.
        job_id: The job.
        fence: The fence of the attempt.
        holder: The solve's seat; `LEADER` if it leads.
        free_bytes: Returns this worker's disk space for temporary files; needed of helpers only.
        limits: How many jobs tenants may have running; needed of helpers only.
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
        """Reserve the first of these units that is free, and keep the reservation of `keeping`.

        If the ledger does not answer, nothing can be reserved. Then a leader goes on without, and
        may do what another worker does too; a helper waits. Neither ends here: heartbeats notice
        when the lease or the seat is lost.
        """
        try:
            reserved = self._seats.reserve_unit(
                *(self._job_id, self._fence, self._holder, ready, keeping),
                *(self._free_bytes(), self._limits),
            )
        except LedgerUnavailable as error:
            _log.warning("cannot reserve a unit of %s: %s", self._job_id, error)
            leads = self._holder == LEADER
            return Answer(go=True, unit=ready[0] if leads and ready else None)
        if reserved.bells:
            self._doorbell.ring_for_help(self._job_id, reserved.bells)
        return Answer(go=reserved.word == "go", unit=reserved.unit)

    def held(self) -> Held:
        """The units that workers have.

        If the ledger does not answer, a leader is told that nobody has any, and may do what another
        worker does too; a helper goes on waiting.
        """
        try:
            units = self._seats.held_units(self._job_id, self._fence, self._holder)
        except LedgerUnavailable as error:
            _log.warning("cannot tell who does units of %s: %s", self._job_id, error)
            return Held(go=True, units=[] if self._holder == LEADER else None)
        return Held(go=units is not None, units=None if units is None else sorted(units))
