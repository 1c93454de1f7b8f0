"""`strucprune jobs cancel`, `pause`, `resume`, `retry` and `delete`. No torch."""

from __future__ import annotations

from typing import Annotated

import typer

from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import JobArgument, UrlOption, connect
from strucprune_core.commands.jobs.view import print_job
from strucprune_core.commands.tables import show


def cancel(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job.

    At once if it waits, at its next safe point if it runs.
    """
    with failures(as_json), connect(url) as client:
        print_job(client.cancel(client.find(job)), as_json)


def pause(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Pause a job; its finished layers are kept."""
    with failures(as_json), connect(url) as client:
        print_job(client.pause(client.find(job)), as_json)


def resume(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Continue a paused job."""
    with failures(as_json), connect(url) as client:
        print_job(client.resume(client.find(job)), as_json)


def retry(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Run a failed or cancelled job again.

    It continues from its last finished layer.
    """
    with failures(as_json), connect(url) as client:
        print_job(client.retry(client.find(job)), as_json)


def delete(
    job: JobArgument,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also remove the files that it published.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a job that has ended."""
    with failures(as_json), connect(url) as client:
        job_id = client.find(job)
        client.delete(job_id, outputs=outputs)
        show({"id": job_id, "deleted": True, "outputs": outputs}, as_json)
