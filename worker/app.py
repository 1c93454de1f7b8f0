"""The Celery app of the worker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_shutdown,
    worker_shutting_down,
)

from api.jobs import logs
from api.jobs.doorbell import celery_settings, ring_if_missing
from strucprune_core.errors import StrucPruneError
from strucprune_core.plan.rates import DeviceRates
from worker.child import SOLVE
from worker.die_with_parent import die_with_parent
from worker.execution import Services
from worker.presence import Presence, own_name
from worker.settings import Settings
from worker.stop import Drain
from worker.tasks import register
from worker.watch import watch_step


def make_app(
    settings: Settings, solve: Sequence[str] = SOLVE, rates: DeviceRates | None = None
) -> Celery:
    """The app. The process that calls this must also run it (see `__main__`).

    Args:
        settings: Its configuration.
        solve: The program that does a job's work.
        rates: Of the device, if they could be measured.
    """
    app = Celery("strucprune-worker")
    app.conf.update(celery_settings(settings.celery_broker_url))
    drain = Drain()
    name = own_name()
    register(app, settings, drain, solve, name, rates)
    app.steps["worker"].add(watch_step(settings, drain, name, rates))
    _connect_signals(drain, settings, name)
    return app


def _connect_signals(drain: Drain, settings: Settings, name: str) -> None:
    main_pid = os.getpid()

    def begin_drain(**_: Any) -> None:
        drain.start()

    def follow_main_process(**_: Any) -> None:
        # If the main process is killed, nothing else would stop its child.
        die_with_parent(main_pid)

    def configure_logs(**_: Any) -> None:
        logs.configure(settings.log_format)

    def ring_again(**_: Any) -> None:
        # A doorbell that was read during the shutdown is lost with this worker.
        with contextlib.suppress(StrucPruneError), Services.connected(settings, name) as services:
            Presence(services.ledger, name).leave()
            ring_if_missing(services.ledger, services.doorbell)

    # `weak=False`: nothing else refers to these functions.
    setup_logging.connect(configure_logs, weak=False)
    worker_shutting_down.connect(begin_drain, weak=False)
    worker_shutdown.connect(ring_again, weak=False)
    worker_process_init.connect(follow_main_process, weak=False)
