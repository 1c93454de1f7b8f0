"""Seats: how several workers serve one job. See `lua/`.

The worker that holds a job's lease leads it. Others may take one of `runtime.max_workers - 1`
seats, which lapse like leases. Leader and helpers reserve units of the job, so that two workers do
not do the same one. Seats and reservations belong to one attempt: when it ends they are removed,
and verbs that name its fence are refused.

Reservations save work; results do not depend on them. Units are committed in the workspace with
put-if-absent, so a worker without a seat or a reservation (it lapsed, Redis was lost, a verb
failed) at worst does work twice. Only the leader publishes, under its lease and the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from api.jobs.limits import RunningLimits
from api.jobs.record import Signal

HelpState = Literal["helping", "wanted"]
# The holder of a reservation that is no helper.
LEADER = "leader"
# After this many failures of helpers in an attempt, it gets no more helpers.
HELP_FAILURES = 3
# Helpers leave their seats for a job that has been queued for this long.
YIELD_SECONDS = 5.0
_ANY_NUMBER = RunningLimits()


@dataclass(frozen=True, slots=True)
class Place:
    """A seat that was taken.

    Attributes:
        seat: Its name.
        fence: Fence of the attempt that it belongs to.
        attempt: Number of the attempt in its run.
        run: Number of the run.
    """

    job_id: str
    seat: str
    fence: int
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class UnitReservation:
    """The answer to a request for a unit.

    Attributes:
        word: `go`; `lost` if the attempt or the seat is lost; `yield` if the helper should leave
            its seat, so that another job gets its worker.
        unit: The reserved unit; None if others hold all.
        bells: How many doorbells to ring, because more workers would find units to do.
    """

    word: Literal["go", "lost", "yield"]
    unit: str | None = None
    bells: int = 0


class Seats:
    """Who helps with a job. Every method raises `LedgerUnavailable`.

    Args:
        run: Runs a script of the ledger by its name.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def take(
        self,
        job_id: str,
        seat: str,
        seconds: float,
        limits: RunningLimits = _ANY_NUMBER,
        free_bytes: int = 0,
    ) -> Place | None:
        """Take a seat.

        None if no help is wanted, or if a job that this worker could start has been queued for a
        while.

        Args:
            job_id: A running job.
            seat: A new, random name for the seat.
            seconds: How long the seat lasts unless it is renewed.
            limits: As in `Ledger.claim`.
            free_bytes: As in `Ledger.claim`.
        """
        found = self._run("take_seat", job_id, seat, seconds, limits.encode(), free_bytes)
        return Place(job_id, seat, *map(int, found)) if found else None

    def beat(self, place: Place, seconds: float) -> Signal:
        """Renew the seat, and return whether to stop."""
        return Signal(self._run("beat_seat", place.job_id, place.fence, place.seat, seconds))

    def leave(self, place: Place, *, failed: bool = False) -> bool:
        """Give the seat and its unit back. False if the seat was lost already."""
        how = "1" if failed else ""
        return bool(self._run("leave_seat", place.job_id, place.fence, place.seat, how))

    def reserve_unit(
        self,
        job_id: str,
        fence: int,
        holder: str,
        ready: Sequence[str],
        keeping: str | None = None,
        free_bytes: int = 0,
        limits: RunningLimits = _ANY_NUMBER,
    ) -> UnitReservation:
        """Reserve the first free unit, and give up what was reserved before.

        Args:
            job_id: The job.
            fence: Fence of the attempt.
            holder: A seat, or `LEADER`.
            ready: Units that could be done now; may be empty.
            keeping: A unit reserved before that is kept, since it is being stored.
            free_bytes: The worker's space for temporary files. A helper yields only to jobs that
                fit.
            limits: How many jobs tenants may have running. A helper yields only to jobs that may
                run.
        """
        word, unit, bells = self._run(
            "reserve_unit",
            *(job_id, fence, holder, keeping or "", free_bytes, limits.encode()),
            *ready,
        )
        return UnitReservation(word, unit or None, int(bells))

    def held_units(self, job_id: str, fence: int, holder: str) -> frozenset[str] | None:
        """The units that workers of an attempt have reserved; None if the holder has no part in it.

        Args:
            job_id: The job.
            fence: Fence of the attempt.
            holder: A seat, or `LEADER`.
        """
        word, *units = self._run("held_units", job_id, fence, holder)
        return frozenset(units) if word == "go" else None

    def wanted(self, seconds: float, limit: int) -> list[tuple[str, int]]:
        """Jobs that want help and were not rung for this long, each with the doorbells to ring.

        Being returned counts as being rung for.
        """
        found = self._run("helpers_wanted", seconds, limit)
        return [(job_id, int(bells)) for job_id, bells in zip(found[::2], found[1::2], strict=True)]

    def counts(self) -> dict[HelpState, int]:
        """How many workers help, and how many more would find units to do."""
        helping, wanted = map(int, self._run("help_counts"))
        return {"helping": helping, "wanted": wanted}
