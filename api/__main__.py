"""Run the API: `python -m api`, configured by STRUCPRUNE_* variables."""

from __future__ import annotations

import logging

import uvicorn

from api.app import create_app
from api.jobs import environment
from api.settings import Settings

# Long-polls and event streams are cut after this on SIGTERM; their clients reconnect.
GRACEFUL_SHUTDOWN_SECONDS = 10


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = environment.read(Settings)
    uvicorn.run(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
