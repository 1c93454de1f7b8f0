"""Calling the service: its URL, the client, and ids of jobs. No torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from strucprune_core.client.connection import URL_VARIABLE

if TYPE_CHECKING:
    from strucprune_core.client.synchronous import StrucPruneClient

# A person at a terminal learns soon that nothing answers; a watch of hours survives an outage.
RETRY_SECONDS = 5.0
WATCH_RETRY_SECONDS = 300.0

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, or its beginning.")]
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
