"""A worker's disk space for temporary files, checked before each claim.

A worker whose disk is full or broken would fail a job at once and be free for the next: it would
fail a whole queue faster than the other workers finish it. So it checks its disk before it claims.
If the space does not suffice, it rings the doorbell for another worker and rests, each time longer,
until it has claimed a job again.
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
# Also the longest that a job which fits this worker may wait for it.
_LONGEST_REST_SECONDS = 30.0
# How soon a resting worker notices a drain.
_TICK_SECONDS = 0.1
# Some file systems still make files when they have no space for data.
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why temporary files of a job cannot be kept here.

    Attributes:
        reason: `full` if the job needs more space; `unwritable` if no file can be made.
        message: For people.
    """

    reason: Literal["full", "unwritable"]
    message: str


class Scratch:
    """The directory for temporary files, as one process sees it.

    Args:
        directory: The directory; the system's directory for temporary files if None.
        drain: Ends a rest.
        first_rest_seconds: Length of the first rest.
        most_bytes: Most bytes that temporary files may take; all free space if None.
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
        """Why a job that needs this much space cannot run here; None if it can."""
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
        """Free space; 0 if it cannot be read."""
        try:
            return self._free(self._directory or Path(tempfile.gettempdir()))
        except OSError:
            return 0

    def _free(self, directory: Path) -> int:
        free = shutil.disk_usage(directory).free
        return free if self._most_bytes is None else min(free, self._most_bytes)

    def rest(self, unfit: Unfit, tally: Tally) -> None:
        """Claim nothing for a while, and for as long as no file can be written."""
        found: Unfit | None = unfit
        while found is not None and not self._drain.started:
            tally.count(SCRATCH_UNFIT, found.reason)
            tally.flush()
            _log.warning(
                "scratch is %s, no job is claimed for %.0f s: %s",
                found.reason,
                self._rest_seconds,
                found.message,
            )
            self._wait()
            found = self.unfit()

    def fits(self) -> None:
        """Note that a job was claimed: the next rest is a short one again."""
        self._rest_seconds = self._first_rest_seconds

    def _wait(self) -> None:
        until = time.monotonic() + self._rest_seconds
        while not self._drain.started and time.monotonic() < until:
            time.sleep(_TICK_SECONDS)
        self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST_SECONDS)
