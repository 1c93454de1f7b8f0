"""What a worker's main process does every second beside Celery's own work.

It touches the heartbeat file (see `HeartbeatFile`), shows operators that the worker is there (see
`presence`), and looks for the drain file. That file
means the same as SIGTERM: give the running job back at its next safe point, and end. It is for
whoever cannot signal the process: a pod's preStop hook, a person with a shell in the container, a
program that is notified before a machine is taken away.

The timer stops while Celery has no connection to its broker, and while it waits for the last job on
shutdown. Then the supervisor of the running solve touches the heartbeat file.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery import bootsteps

from api.jobs.heartbeat_file import HeartbeatFile
from api.jobs.ledger import connect
from strucprune_core.plan.rates import DeviceRates
from worker.presence import PATIENCE_SECONDS, Presence
from worker.settings import Settings
from worker.stop import Drain

_EVERY_SECONDS = 1.0


class Watch:
    """Touches the heartbeat file and looks for the drain file, once for each call of `look`.

    Args:
        heartbeat: Touched at every look.
        drain_file: Starts the drain once it exists; None if there is no such file.
        drain: Tells whether the drain has begun.
    """

    def __init__(self, heartbeat: HeartbeatFile, drain_file: Path | None, drain: Drain) -> None:
        self._heartbeat = heartbeat
        self._drain_file = drain_file
        self._drain = drain

    def look(self) -> None:
        """Touch the heartbeat file, and begin to drain if the drain file exists."""
        self._heartbeat.beat()
        if self._drain_file is None or self._drain.started or not self._drain_file.exists():
            return
        # Celery's handler sets `drain` at once, so this signal is sent only once.
        os.kill(os.getpid(), signal.SIGTERM)


def forget_drain(drain_file: Path | None) -> None:
    """Remove a drain file that was meant for an earlier worker.

    Raises:
        OSError: it cannot be removed.
    """
    if drain_file is not None:
        drain_file.unlink(missing_ok=True)


def watch_step(
    settings: Settings, drain: Drain, name: str, rates: DeviceRates | None
) -> type[bootsteps.StartStopStep]:
    """The step of Celery's start-up that begins the watch."""

    class WatchStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Runs the watch in the loop that handles messages, so that a hung loop is noticed."""

        requires = frozenset({"celery.worker.components:Timer"})

        def start(self, parent: Any) -> None:
            watch = Watch(HeartbeatFile(settings.heartbeat_file), settings.drain_file, drain)
            # Not for long and not again: Celery's loop waits meanwhile.
            ledger = connect(settings.redis_url, patience_seconds=PATIENCE_SECONDS, retries=0)
            presence = Presence(ledger, name)

            def look() -> None:
                watch.look()
                presence.introduce(settings, rates)

            look()
            parent.timer.call_repeatedly(_EVERY_SECONDS, look)

    return WatchStep
