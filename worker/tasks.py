"""The Celery tasks: `worker.tasks.run_job()` and `worker.tasks.help_job(job_id)`."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from api.jobs.doorbell import HELP_TASK, TASK
from strucprune_core.plan.rates import DeviceRates
from worker.execution import Services, run_next
from worker.helping import help_job
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain


def register(
    app: Celery,
    settings: Settings,
    drain: Drain,
    solve: Sequence[str],
    name: str,
    rates: DeviceRates | None,
) -> None:
    """Register the tasks that answer doorbells, for the worker of this name and these rates."""
    scratch = Scratch(settings.scratch_directory, drain, most_bytes=settings.scratch_bytes)

    def answer() -> None:
        with Services.connected(settings, name, rates) as services:
            run_next(services, settings, drain, scratch, solve)

    def help_out(job_id: str) -> None:
        with Services.connected(settings, name, rates) as services:
            help_job(job_id, services, settings, drain, scratch)

    app.task(answer, name=TASK)
    app.task(help_out, name=HELP_TASK)
