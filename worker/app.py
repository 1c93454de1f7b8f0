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
from worker import die_with_parent as tether
from worker.child import SOLVE
from worker.execution import Services
from worker.settings import Settings
from worker.stop import Drain
from worker.tasks import register
from worker.watch import watch_step


def make_app(settings: Settings, solve: Sequence[str] = SOLVE) -> Celery:
    """The app, to be run by this very process (see `__main__`)."""
    app = Celery("strucprune-worker")
    app.conf.update(celery_settings(settings.celery_broker_url))
    drain = Drain()
    register(app, settings, drain, solve)
    app.steps["worker"].add(watch_step(settings, drain))
    _connect_signals(drain, settings)
    return app


def _connect_signals(drain: Drain, settings: Settings) -> None:
    main_pid = os.getpid()

    def begin_drain(**_: Any) -> None:
        drain.start()

    def follow_main_process(**_: Any) -> None:
        # Else the child of a killed main process would go on, with nobody to stop it.
        tether.die_with_parent(main_pid)

    def log_our_way(**_: Any) -> None:
        logs.configure(settings.log_format)

    def hand_doorbell_on(**_: Any) -> None:
        # One that was read while this worker shut down is lost with it.
        with contextlib.suppress(StrucPruneError), Services.connected(settings) as services:
            ring_if_missing(services.ledger, services.doorbell)

    # Not weak: nothing else refers to the functions.
    setup_logging.connect(log_our_way, weak=False)
    worker_shutting_down.connect(begin_drain, weak=False)
    worker_shutdown.connect(hand_doorbell_on, weak=False)
    worker_process_init.connect(follow_main_process, weak=False)
