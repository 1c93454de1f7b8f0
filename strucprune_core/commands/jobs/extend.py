"""`strucprune jobs extend`: further sizes from a finished job's measurements. No torch."""

from __future__ import annotations

from typing import Annotated

import typer

from strucprune_core.commands.arguments import positive_number
from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.failures import failures
from strucprune_core.commands.jobs.service import (
    IdempotencyOption,
    JobArgument,
    UrlOption,
    WatchOption,
    connect,
)
from strucprune_core.commands.jobs.watch import show_submitted


def extend(
    job: JobArgument,
    size: Annotated[
        list[float],
        positive_number(
            "FRACTION", "Sparsity of a further size, such as 0.5; give it several times for more."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="URI", help="Where the further sizes go: an empty prefix, s3://bucket/prefix."
        ),
    ],
    watch: WatchOption = False,
    idempotency_key: IdempotencyOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add sizes to a succeeded job, as a new job, and print its id.

    The new job measures nothing again. The earlier one must have been submitted with --size, even
    if only once; its results stay as they are.
    """
    with failures(as_json):
        with connect(url) as client:
            extended = client.extend(
                client.find(job), size, output, idempotency_key=idempotency_key
            )
        show_submitted(extended, watch=watch, url=url, as_json=as_json)
