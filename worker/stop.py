"""How stops are requested: a worker is drained, a solve is terminated."""

from __future__ import annotations

import mmap
import signal
from types import FrameType

from strucprune_core.errors import Stopped


class StopOnTerminate:
    """A stop signal (see `strucprune_core.run.progress`) that is set by SIGTERM."""

    def __init__(self) -> None:
        self._asked = False

    @classmethod
    def install(cls) -> StopOnTerminate:
        """A stop signal that SIGTERM to this process sets."""
        stop = cls()
        signal.signal(signal.SIGTERM, stop._ask)
        return stop

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def check(self) -> None:
        """Raise `Stopped` if SIGTERM has come."""
        if self._asked:
            raise Stopped("The supervisor asked the solve to stop.")


class Drain:
    """A flag that Celery's main process sets on SIGTERM and its child, which runs the job, reads.

    Celery lets a running task finish and does not notify it of the shutdown. So the flag lies in
    memory that was mapped before the fork, which both processes share.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def start(self) -> None:
        """Request that the running job stops at its next safe point."""
        self._shared[0] = 1

    @property
    def started(self) -> bool:
        """True once `start` was called, in any of the processes."""
        return self._shared[0] == 1
