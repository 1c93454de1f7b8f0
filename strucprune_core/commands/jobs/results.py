"""`strucprune jobs logs` and `download`: what a job left. No torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from strucprune_core.commands import figures
from strucprune_core.commands.byte_display import byte_display
from strucprune_core.commands.console import JsonOption, local_path, print_json, stderr
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import (
    WATCH_RETRY_SECONDS,
    JobArgument,
    UrlOption,
    connect,
)
from strucprune_core.errors import InvalidSpec
from strucprune_core.spec import size_label


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
    size: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION",
            help="Of a job of several sizes, only this one. It keeps its folder.",
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download what a succeeded job published.

    Checkpoint, reports and exports, with their digests compared. After an interruption, the same
    command continues.
    """
    with failures(as_json), connect(url, WATCH_RETRY_SECONDS) as client:
        directory, job_id = local_path(output, "--to"), client.find(job)
        folder = None if size is None else _folder(size)
        total = sum(file.bytes for file in client.files_of(job_id, size=folder))
        with byte_display("downloading", total) as display:
            paths = client.download(job_id, directory, size=folder, on_bytes=display)
        if as_json:
            print_json([str(path) for path in paths])
        else:
            found = f"{len(paths)} files, {figures.size(total)}, in {directory}"
            stderr.print(found, highlight=False, markup=False, soft_wrap=True)


def _folder(size: str) -> str:
    """The folder of a size, as the job names it: 0.30 is 0.3."""
    try:
        return size_label(float(size))
    except ValueError:
        raise InvalidSpec(
            f"'{size}' is no number",
            field="--size",
            remedy="Give a sparsity of the job, such as 0.3.",
        ) from None
