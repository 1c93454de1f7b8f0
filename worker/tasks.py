"""The one Celery task: `worker.tasks.run_job(job_id)`."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from api.jobs.doorbell import TASK
from worker.execution import Services, run_job
from worker.settings import Settings
from worker.stop import Drain


def register(app: Celery, settings: Settings, drain: Drain, solve: Sequence[str]) -> None:
    """Make the app answer doorbells."""

    def answer(job_id: str) -> None:
        with Services.connected(settings) as services:
            run_job(job_id, services, settings, drain, solve)

    app.task(answer, name=TASK)
