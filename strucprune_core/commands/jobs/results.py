"""`strucprune jobs logs` and `download`: what a job left. No torch."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from strucprune_core.commands.console import JsonOption, local_path, stderr
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import (
    WATCH_RETRY_SECONDS,
    JobArgument,
    UrlOption,
    connect,
)


def logs(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Print what a job has logged.

    With --json, each line is one of JSON.
    """
    with failures(as_json), connect(url) as client:
        for line in client.logs(client.find(job)):
            text = (
                line.model_dump_json()
                if as_json
                else f"{line.at:%Y-%m-%d %H:%M:%S} run {line.run} attempt {line.attempt} "
                f"{line.level} {line.message}"
            )
            sys.stdout.write(f"{text}\n")


def download(
    job: JobArgument,
    output: Annotated[
        str,
        typer.Option(
            "--to",
            "--output",
            metavar="DIR",
            help="Directory; made if missing. Files that are there already are kept.",
        ),
    ],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download what a succeeded job published.

    Checkpoint, reports and exports, with their digests compared. After an interruption, the same
    command continues.
    """
    with failures(as_json), connect(url, WATCH_RETRY_SECONDS) as client, _download_bar() as bar:
        tasks: dict[str, Any] = {}

        def show_bytes(name: str, here_bytes: int, total_bytes: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total_bytes)
            bar.update(tasks[name], completed=here_bytes)

        paths = client.download(
            client.find(job), local_path(output, "--output"), on_bytes=show_bytes
        )
    if as_json:
        sys.stdout.write(json.dumps([str(path) for path in paths], indent=2) + "\n")
    else:
        stderr.print(f"{len(paths)} files in {output}", highlight=False, markup=False)


def _download_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<32}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=stderr,
        transient=True,
    )
