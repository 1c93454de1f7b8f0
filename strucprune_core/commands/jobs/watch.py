"""`strucprune jobs watch`. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.progress import Progress

from strucprune_core.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    JsonOption,
    StepDisplay,
    progress_bar,
    stderr,
)
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import (
    WATCH_RETRY_SECONDS,
    JobArgument,
    UrlOption,
    connect,
)
from strucprune_core.commands.jobs.view import as_dict, print_job, queue_place

if TYPE_CHECKING:
    from strucprune_core.client.models import Job


def watch(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Watch a job until it ends.

    The exit code is 0 only if it succeeded. Ctrl-C stops the watching, not the job. With --json,
    each change is one line of JSON.
    """
    with failures(as_json):
        watch_job(job, url, as_json)


def watch_job(job_id: str, url: str | None, as_json: bool) -> None:
    """Watch a job until it ends, and exit with 0 only if it succeeded."""
    with connect(url, WATCH_RETRY_SECONDS) as client, _interruptible():
        job_id = client.find(job_id)
        if as_json:
            job = client.wait(job_id, on_change=_print_line)
        else:
            with progress_bar() as bar:
                job = client.wait(job_id, on_change=_Display(bar))
            print_job(job, as_json)
    raise typer.Exit(0 if job.state == "succeeded" else EXIT_FAILED)


def show_submitted(job: Job, *, watch: bool, url: str | None, as_json: bool) -> None:
    """Print the id of a new job, or watch it until it ends."""
    if watch:
        if not as_json:
            stderr.print(f"submitted {job.id}", highlight=False)
        watch_job(job.id, url, as_json)
    elif as_json:
        print_job(job, as_json)
    else:
        sys.stdout.write(f"{job.id}\n")


class _Display:
    """Shows the states of a job, and its phases while it runs."""

    def __init__(self, bar: Progress) -> None:
        self._line = StepDisplay(bar)

    def __call__(self, job: Job) -> None:
        progress = job.progress
        fraction = progress.fraction if progress else float(job.state == "succeeded")
        if job.state == "running" and progress is not None:
            label = f"{progress.phase} {progress.layers_done}/{progress.layers_total}"
            self._line.show(progress.phase, label, fraction, progress.eta_seconds)
        else:
            label = f"{job.state}, {queue_place(job.queue)}" if job.queue else job.state
            self._line.show(label, label, fraction)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stderr.print("no longer watching; the job goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _print_line(job: Job) -> None:
    sys.stdout.write(json.dumps(as_dict(job)) + "\n")
    sys.stdout.flush()
