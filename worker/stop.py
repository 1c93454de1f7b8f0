"""How a stop is asked for: a worker is drained, and a solve is terminated."""

from __future__ import annotations

import mmap
import signal
from types import FrameType

from strucprune_core.errors import Stopped


class StopOnTerminate:
    """A stop signal (see `strucprune_core.run.progress`) that fires after SIGTERM."""

    def __init__(self) -> None:
        self._asked = False

    @classmethod
    def install(cls) -> StopOnTerminate:
        """One that listens for SIGTERM to this process."""
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
    """A flag shared by Celery's main process, which gets SIGTERM, and its child, which must know.

    Celery lets a running task finish and does not tell it of the shutdown. So the flag lies in
    memory that both share because it was mapped before the fork.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def start(self) -> None:
        """Ask for the end of the running job at its next safe point."""
        self._shared[0] = 1

    @property
    def started(self) -> bool:
        """True once `start` was called, in any of the processes."""
        return self._shared[0] == 1
