"""`strucprune jobs list` and `show`. No torch."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from strucprune_core.commands.arguments import whole_number
from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import JobArgument, UrlOption, connect
from strucprune_core.commands.jobs.view import as_dict, print_job

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
            sys.stdout.write(json.dumps([as_dict(job) for job in newest], indent=2) + "\n")
            return
        table = Table("id", "state", "done", "created (UTC)", "labels", box=None)
        for job in newest:
            done = f"{job.progress.fraction:.0%}" if job.progress else ""
            labels = Text(" ".join(f"{name}={value}" for name, value in job.labels.items()))
            table.add_row(job.id, job.state, done, f"{job.created_at:%Y-%m-%d %H:%M}", labels)
        Console().print(table)


def show_job(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a job as it is now."""
    with failures(as_json), connect(url) as client:
        print_job(client.get(job), as_json)
