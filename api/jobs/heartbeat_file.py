"""A file whose age tells that its process is alive, for probes that cannot ask over the network.

Not to be confused with the heartbeat of a lease, which tells the ledger that a *job* is alive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

# Whoever judges the file's age must allow for many times this, since a process that is busy with
# one thing beats only before and after it.
_EVERY_SECONDS = 5.0


class HeartbeatFile:
    """Touched while the process gets on with its work.

    Args:
        path: The file; made if missing. None keeps no file.
        every_seconds: Beats that come sooner after the last one are skipped.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        path: Path | None,
        every_seconds: float = _EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._every_seconds = every_seconds
        self._clock = clock
        self._beaten_at = float("-inf")

    def beat(self) -> None:
        """Set the file's time to now.

        A failure is only logged: the work itself goes on, and the file's age tells of it anyway.
        """
        now = self._clock()
        if self._path is None or now - self._beaten_at < self._every_seconds:
            return
        self._beaten_at = now
        try:
            self._path.touch()
        except OSError as error:
            _log.error("cannot touch the heartbeat file %s: %s", self._path, error.strerror)
