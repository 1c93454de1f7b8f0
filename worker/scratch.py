"""A worker's place for temporary files: whether it will do, and what to do while it does not.

A worker whose disk is full or broken fails a job at once and is free for the next: it would fail a
whole queue faster than all others together get anything done. So it looks before it claims, hands
the doorbell on, and rests, each time longer, until it has taken a job again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from api.jobs.meters import SCRATCH_UNFIT, Tally
from strucprune_core.errors import ScratchUnavailable
from strucprune_core.scratch.directories import scratch_directory, scratch_errors
from worker.stop import Drain

_log = logging.getLogger(__name__)

_FIRST_REST_SECONDS = 1.0
# Also how long a job that this worker has room for may wait for it at worst.
_LONGEST_REST_SECONDS = 30.0
# How soon a drain is noticed meanwhile.
_TICK_SECONDS = 0.1
# Some file systems promise room for names and have none for data.
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Unfit:
    """What is wrong with a place.

    Attributes:
        reason: `full` if there is not room for the job; `unwritable` if there is none at all.
        message: For people.
    """

    reason: Literal["full", "unwritable"]
    message: str


class Scratch:
    """The place for temporary files, in one process.

    Args:
        directory: Where; the system's directory for temporary files if None.
        drain: Ends a rest.
        first_rest_seconds: Length of the first rest.
        most_bytes: What may be taken of the place; all that is free if None.
    """

    def __init__(
        self,
        directory: Path | None,
        drain: Drain,
        first_rest_seconds: float = _FIRST_REST_SECONDS,
        most_bytes: int | None = None,
    ) -> None:
        self._directory = directory
        self._drain = drain
        self._first_rest_seconds = first_rest_seconds
        self._rest_seconds = first_rest_seconds
        self._most_bytes = most_bytes

    def unfit(self, needed_bytes: int = 0) -> Unfit | None:
        """What keeps a job that needs so much room from running here; None if nothing does."""
        try:
            with scratch_directory(self._directory) as directory, scratch_errors("a file"):
                (directory / "probe").write_bytes(bytes(_PROBE_BYTES))
                free_bytes = self._free(directory)
        except ScratchUnavailable as error:
            return Unfit("unwritable", str(error))
        if free_bytes < needed_bytes:
            return Unfit("full", f"it needs {needed_bytes:,} bytes, and {free_bytes:,} are free")
        return None

    def free_bytes(self) -> int:
        """Room that is left; 0 if that cannot be told."""
        try:
            return self._free(self._directory or Path(tempfile.gettempdir()))
        except OSError:
            return 0

    def _free(self, directory: Path) -> int:
        free = shutil.disk_usage(directory).free
        return free if self._most_bytes is None else min(free, self._most_bytes)

    def rest(self, unfit: Unfit, tally: Tally) -> None:
        """Let others have the doorbells for a while; for as long as nothing can be written."""
        found: Unfit | None = unfit
        while found is not None and not self._drain.started:
            tally.count(SCRATCH_UNFIT, found.reason)
            tally.flush()
            _log.warning(
                "scratch is %s, no job is taken for %.0f s: %s",
                found.reason,
                self._rest_seconds,
                found.message,
            )
            self._wait()
            found = self.unfit()

    def fits(self) -> None:
        """A job is taken: the next rest is a short one again."""
        self._rest_seconds = self._first_rest_seconds

    def _wait(self) -> None:
        until = time.monotonic() + self._rest_seconds
        while not self._drain.started and time.monotonic() < until:
            time.sleep(_TICK_SECONDS)
        self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST_SECONDS)
