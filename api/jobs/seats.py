"""Several workers on one job: seats of those that help, and claims on units. See `lua/`.

The worker that holds a job's lease leads it. Others may take one of `runtime.max_workers - 1`
seats, which lapse like leases, and do units of the job that nobody else has claimed. Seats and
claims belong to one attempt: with its end they are gone, and verbs that name its fence are refused.

Nothing here decides what a result is. Units are committed in the workspace with put-if-absent, so
whoever works without a seat or a claim (it lapsed, Redis was lost, a verb did not get through) does
work twice at worst; and only the leader publishes, under its lease and the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from api.jobs.limits import RunningLimits
from api.jobs.record import Signal

HelpState = Literal["helping", "wanted"]
# The claimant that is no helper.
LEADER = "leader"
# An attempt that so many helpers have failed in is left to its leader.
HELP_FAILURES = 3
# A job that waits so long for a worker makes helpers leave their seats.
YIELD_SECONDS = 5.0
_ANY_NUMBER = RunningLimits()


@dataclass(frozen=True, slots=True)
class Place:
    """A seat that was taken.

    Attributes:
        seat: Its name.
        fence: Of the attempt that it belongs to.
        attempt: The attempt's number in its run.
        run: The run.
    """

    job_id: str
    seat: str
    fence: int
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class UnitReservation:
    """The answer to a claim of a unit.

    Attributes:
        word: `go`; `lost` if attempt or seat are; `yield` if the seat should be left to let another
            job have this worker.
        unit: The unit; None if others have all.
        bells: Doorbells to ring: so many more workers would find something to do.
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
        """Take a seat of this (new, random) name.

        None if no help is wanted, or if a job has waited for a while that this worker could start.

        Args:
            job_id: A running job.
            seat: Its name.
            seconds: How long it lasts without a beat.
            limits: As for a claim of a job.
            free_bytes: As for a claim of a job.
        """
        found = self._run("take_seat", job_id, seat, seconds, limits.encode(), free_bytes)
        return Place(job_id, seat, *map(int, found)) if found else None

    def beat(self, place: Place, seconds: float) -> Signal:
        """Keep the seat, and learn whether to stop."""
        return Signal(self._run("beat_seat", place.job_id, place.fence, place.seat, seconds))

    def leave(self, place: Place, *, failed: bool = False) -> bool:
        """Give the seat back, and its unit with it. False if it was lost already."""
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
        """Claim the first unit that nobody else has, giving up what was claimed before.

        Args:
            job_id: The job.
            fence: Of the attempt.
            holder: A seat, or `LEADER`.
            ready: Units that could be done now; may be empty.
            keeping: One claimed before that is not given up yet, since it is being stored.
            free_bytes: Room of the holder's worker for temporary files: a helper yields to jobs
                that it has room for.
            limits: How many jobs tenants may have running: a helper yields to no others.
        """
        word, unit, bells = self._run(
            "reserve_unit",
            *(job_id, fence, holder, keeping or "", free_bytes, limits.encode()),
            *ready,
        )
        return UnitReservation(word, unit or None, int(bells))

    def wanted(self, seconds: float, limit: int) -> list[tuple[str, int]]:
        """Jobs for whose help nobody has rung so long, and how many doorbells each wants.

        Being returned counts as being rung for.
        """
        found = self._run("helpers_wanted", seconds, limit)
        return [(job_id, int(bells)) for job_id, bells in zip(found[::2], found[1::2], strict=True)]

    def counts(self) -> dict[HelpState, int]:
        """How many workers help, and how many more would find something to do."""
        helping, wanted = map(int, self._run("help_counts"))
        return {"helping": helping, "wanted": wanted}
