"""Calling the service: its URL, the client, and ids of jobs. No torch."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from strucprune_core.client.connection import URL_VARIABLE
from strucprune_core.errors import StrucPruneError

if TYPE_CHECKING:
    from strucprune_core.client.synchronous import StrucPruneClient

# A person at a terminal learns soon that nothing answers; a watch of hours survives an outage.
RETRY_SECONDS = 5.0
WATCH_RETRY_SECONDS = 300.0

_COMPLETED_IDS = 100
"""So many of the newest jobs are offered where a shell completes an id."""


def complete_id(incomplete: str) -> list[str]:
    """Ids of the newest jobs that begin like this, with `job_` if what is typed has it.

    None where the service does not answer: a message would stand amid what is being typed.
    """
    whole = "job_".startswith(incomplete[:4])
    try:
        with connect(None, retry_seconds=0) as client:
            ids = [job.id for job in islice(client.list(page_size=_COMPLETED_IDS), _COMPLETED_IDS)]
    except StrucPruneError:
        return []
    offered = ids if whole else [each.removeprefix("job_") for each in ids]
    return [each for each in offered if each.startswith(incomplete)]


JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of the job, or its beginning.", autocompletion=complete_id
    ),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Then watch the job until it ends, as jobs watch does.")
]
IdempotencyOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Repeating it with the same job makes no second job."),
]
UrlOption = Annotated[
    str | None, typer.Option(metavar="URL", envvar=URL_VARIABLE, help="URL of the service.")
]


def connect(url: str | None, retry_seconds: float = RETRY_SECONDS) -> StrucPruneClient:
    """A client of the service.

    Raises:
        InvalidSpec: its URL or the key are not known.
    """
    from strucprune_core.client.synchronous import StrucPruneClient

    # httpx logs whole URLs, and whoever has the URL of a download needs no key.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return StrucPruneClient(url, retry_seconds=retry_seconds)
