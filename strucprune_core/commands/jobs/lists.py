"""`strucprune jobs list` and `show`. No torch."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from strucprune_core.commands.arguments import whole_number
from strucprune_core.commands.console import JsonOption, print_json
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import JobArgument, UrlOption, connect
from strucprune_core.commands.jobs.view import as_dict, print_job
from strucprune_core.commands.tables import print_table
from strucprune_core.storage.uri import short_name

STATES = "queued|running|pausing|paused|cancelling|succeeded|failed|cancelled"


def list_jobs(
    state: Annotated[
        str | None, typer.Option(metavar=f"[{STATES}]", help="Only jobs in this state.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.")
    ] = None,
    limit: Annotated[int, whole_number("NUMBER", "Most jobs to list, newest first.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with failures(as_json), connect(url) as client:
        newest = list(
            islice(client.list(state=state, label=label, page_size=min(limit, 100)), limit)
        )
        if as_json:
            print_json([as_dict(job) for job in newest])
            return
        rows = []
        for job in newest:
            done = f"{job.progress.fraction:.0%}" if job.progress else ""
            labels = " ".join(f"{name}={value}" for name, value in job.labels.items())
            model = short_name(job.spec["model"]["uri"])
            created = f"{job.created_at:%Y-%m-%d %H:%M}"
            rows.append([job.id, job.name or "", job.state, done, created, model, labels])
        headings = ["id", "name", "state", "done", "created (UTC)", "model", "labels"]
        print_table(headings, rows, right=["done"])


def show_job(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a job as it is now."""
    with failures(as_json), connect(url) as client:
        print_job(client.get(client.find(job)), as_json)
