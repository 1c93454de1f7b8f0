"""Who does which unit, where several workers serve one job. No torch.

Claims spare work, they do not guard results: a unit that two workers do at once is committed by one
of them (see `workspace`), and both compute the same bytes. So a claim may lapse while its holder is
still at work, and whoever keeps claims may forget them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class UnitClaims(Protocol):
    """The claims of one worker on the units of a job: on one at a time, and one being stored."""

    @property
    def shared(self) -> bool:
        """Whether there may be other workers, so that units may get finished elsewhere."""

    def claim(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        """Take the first of these units that nobody else holds; None if others hold all.

        Gives up what was taken before, whatever the answer: nothing needs to be given back.

        Args:
            ready: Units that could be done now.
            keeping: One that was taken before and is not given up yet.

        Raises:
            Stopped: the job has no place for this worker any more.
        """


class Alone:
    """The claims of the only worker: whatever is ready is its own."""

    shared = False

    def claim(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        """See `UnitClaims.claim`."""
        return ready[0] if ready else None


ALONE = Alone()
