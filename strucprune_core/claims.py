"""Who does which unit, where several workers serve one job. No torch.

Claims spare work, they do not guard results: a unit that two workers do at once is committed by one
of them (see `workspace`), and both compute the same bytes. So a claim may lapse while its holder is
still at work, and whoever keeps claims may forget them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class UnitClaims(Protocol):
    """The claims of one worker on the units of a job; it holds one at a time."""

    @property
    def shared(self) -> bool:
        """Whether there may be other workers, so that units may get finished elsewhere."""

    def claim(self, ready: Sequence[str]) -> str | None:
        """Take the first of these units that nobody else holds; None if others hold all.

        Gives up the unit taken before, whatever the answer: nothing needs to be given back.

        Raises:
            Stopped: the job has no place for this worker any more.
        """


class Alone:
    """The claims of the only worker: whatever is ready is its own."""

    shared = False

    def claim(self, ready: Sequence[str]) -> str | None:
        """See `UnitClaims.claim`."""
        return ready[0] if ready else None


ALONE = Alone()
