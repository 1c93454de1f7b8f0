"""Stops a job that spends too long in one phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from strucprune_core.errors import Stopped
from strucprune_core.run.progress import Phase, Progress


class PhaseLimits:
    """A job's progress sink and stop signal.

    Args:
        limit_seconds: Of each phase.
        clock: Seconds that only grow.
    """

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit_seconds
        self._clock = clock
        self._spent: defaultdict[Phase, float] = defaultdict(float)
        self._phase, self._since = Phase.INSPECTING, clock()

    def progress(self, progress: Progress) -> None:
        """Take a report of the job's progress."""
        self._count()
        self._phase = progress.phase

    def check(self) -> None:
        """Stop the job if its phase has taken longer than the limit.

        Raises:
            Stopped: it has.
        """
        self._count()
        if self._spent[self._phase] > self._limit:
            raise Stopped(f"the phase '{self._phase}' took more than {self._limit:g} s")

    def _count(self) -> None:
        now = self._clock()
        self._spent[self._phase] += now - self._since
        self._since = now
