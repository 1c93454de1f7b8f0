"""Shows operators that this worker is there, and what it is at (`GET /v1/workers`).

The main process says who it is; the child that supervises a solve says what that does. Nothing
depends on it: jobs are held by leases. So a ledger that does not answer is passed over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from api.jobs.ledger import Ledger, LedgerUnavailable
from strucprune_core import __version__
from strucprune_core.plan.rates import DeviceRates
from worker.settings import Settings

# Several times more often than a worker that is silent is forgotten (`WORKER_SECONDS`).
EVERY_SECONDS = 10.0
# Celery's loop waits meanwhile.
PATIENCE_SECONDS = 0.5


def own_name() -> str:
    """The name under which this process and its children show themselves."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Presence:
    """What one worker shows of itself.

    Args:
        ledger: Where it is shown.
        name: Of its main process (see `own_name`).
        clock: Monotonic seconds.
    """

    def __init__(
        self, ledger: Ledger, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._clock = clock
        self._shown_at = float("-inf")

    def introduce(self, settings: Settings, rates: DeviceRates | None = None) -> None:
        """Show that the worker is there, who it is, and how fast its device was measured to be.

        Calls sooner than needed are skipped.
        """
        now = self._clock()
        if now - self._shown_at >= EVERY_SECONDS:
            self._shown_at = now
            host = socket.gethostname()
            measured = {} if rates is None else {"rates": rates.model_dump_json()}
            about = {"host": host, "pool": settings.pool, "version": __version__}
            self._show({**about, **measured})

    def work(self, job_id: str, part: str, progress: Mapping[str, Any] | None) -> None:
        """Show what the worker is at. `part` is "lead" or "help"."""
        progress = progress or {}
        phase, unit = progress.get("phase") or "", progress.get("unit") or ""
        self._show({"job_id": job_id, "part": part, "phase": phase, "unit": unit})

    def rest(self) -> None:
        """Show that the worker has no job."""
        self._show({"job_id": ""})

    def computes_with(self, device: str, threads: int) -> None:
        """Show what solves compute with here, as one of them has said."""
        self._show({"device": device, "threads": str(threads)})

    def reads(self, bytes_per_second: float) -> None:
        """Show how fast a job has just read its model from storage."""
        self._show({"read_bytes_per_second": f"{bytes_per_second:.0f}"})

    def leave(self) -> None:
        """Show the worker no more."""
        with contextlib.suppress(LedgerUnavailable):
            self._ledger.forget_worker(self._name)

    def _show(self, fields: Mapping[str, str]) -> None:
        with contextlib.suppress(LedgerUnavailable):
            self._ledger.note_worker(self._name, fields)
