"""A file whose age shows whether its process is alive, for processes without a network port.

It is not the heartbeat of a lease, which keeps a *job* claimed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

# A probe must allow an age of many times this, since a process touches the file only between steps.
_EVERY_SECONDS = 5.0


class HeartbeatFile:
    """The file, touched while the process makes progress.

    Args:
        path: The file; made if missing. None for no file.
        every_seconds: Calls sooner than this after the last touch are skipped.
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

        A failure is only logged: the work goes on, and the file's age shows the failure anyway.
        """
        now = self._clock()
        if self._path is None or now - self._beaten_at < self._every_seconds:
            return
        self._beaten_at = now
        try:
            self._path.touch()
        except OSError as error:
            _log.error("cannot touch the heartbeat file %s: %s", self._path, error.strerror)
