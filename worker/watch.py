"""What a worker's main process does every second besides Celery's own business.

It shows that it is alive (see `HeartbeatFile`), and it looks for the drain file, which asks for the
same as SIGTERM: give the running job back at its next safe point, and end. The file is for whoever
cannot signal the process: a pod's preStop hook, a person with a shell in the container, a program
that hears of a machine's end.

The timer stands still while Celery has no connection to its broker, and while it waits for the last
job on shutdown; a running job is then shown to be alive by its supervisor.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery import bootsteps

from api.jobs.heartbeat_file import HeartbeatFile
from worker.settings import Settings
from worker.stop import Drain

_EVERY_SECONDS = 1.0


class Watch:
    """One look is `look()`.

    Args:
        heartbeat: Beaten at every look.
        drain_file: Asks for a drain once it exists; None is never looked for.
        drain: Whether a drain has begun.
    """

    def __init__(self, heartbeat: HeartbeatFile, drain_file: Path | None, drain: Drain) -> None:
        self._heartbeat = heartbeat
        self._drain_file = drain_file
        self._drain = drain

    def look(self) -> None:
        """Beat, and begin to drain if that was asked for."""
        self._heartbeat.beat()
        if self._drain_file is None or self._drain.started or not self._drain_file.exists():
            return
        # Celery's handler starts the drain at once, so this is done once.
        os.kill(os.getpid(), signal.SIGTERM)


def forget_drain(drain_file: Path | None) -> None:
    """Remove a drain file that was meant for an earlier worker at this place.

    Raises:
        OSError: it cannot be removed.
    """
    if drain_file is not None:
        drain_file.unlink(missing_ok=True)


def watch_step(settings: Settings, drain: Drain) -> type[bootsteps.StartStopStep]:
    """The step of the worker's start that begins the watch."""

    class WatchStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Looks from the loop that handles messages, so that a loop that hangs is seen to hang."""

        requires = frozenset({"celery.worker.components:Timer"})

        def start(self, parent: Any) -> None:
            watch = Watch(HeartbeatFile(settings.heartbeat_file), settings.drain_file, drain)
            watch.look()
            parent.timer.call_repeatedly(_EVERY_SECONDS, watch.look)

    return WatchStep
