"""Who does which unit, where several workers serve one job. No torch.

Reservations spare work, they do not guard results: a unit that two workers do at once is committed
by one of them (see `workspace`), and both compute the same bytes. So a reservation may lapse while
its holder is still at work, and all of them may be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class UnitReservations(Protocol):
    """One worker's reservations of a job's units: of one at a time, and of one being stored."""

    @property
    def shared(self) -> bool:
        """Whether there may be other workers, so that units may get finished elsewhere."""

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        """Reserve the first of these units that nobody else has; None if others have all.

        Gives up what was reserved before, whatever the answer: nothing needs to be given back.

        Args:
            ready: Units that could be done now.
            keeping: One that was reserved before and is not given up yet.

        Raises:
            Stopped: the job has no place for this worker any more.
        """

    def held(self) -> frozenset[str] | None:
        """The units that workers have, this one included; None if that cannot be told now.

        Raises:
            Stopped: as `reserve`.
        """


class Alone:
    """The reservations of the only worker: whatever is ready is its own."""

    shared = False

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        """See `UnitReservations.reserve`."""
        return ready[0] if ready else None

    def held(self) -> frozenset[str] | None:
        """See `UnitReservations.held`: it waits for nobody."""
        return None


ALONE = Alone()
