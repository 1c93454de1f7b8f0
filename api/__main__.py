"""Run the API: `python -m api`, configured by STRUCPRUNE_* variables."""

from __future__ import annotations

import logging
import socket
import sys

import uvicorn

from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.jobs import environment, logs
from api.jobs.tracing import check_configured
from api.server import server_config
from api.settings import Settings


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = environment.read(Settings)
    logs.configure(settings.log_format)
    check_configured()
    with (
        _listener(settings.api_host, settings.api_port) as listener,
        Inspectors(settings.inspection_helpers) as inspectors,
    ):
        inspectors.warm()
        config = server_config(
            create_app(settings, inspectors),
            settings.max_connections,
            log_config=None,  # uvicorn then logs as the rest of the process does
        )
        logging.getLogger(__name__).info(
            "listening on %s port %d; /docs shows the API", settings.api_host, settings.api_port
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket. Ends the program with one line if the address cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        # Connections inherit this. Without it the second packet of an answer waits for the
        # acknowledgement of the first, which the client delays by 40 ms. asyncio sets it on the
        # sockets that it makes itself.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        sys.exit(
            f"Cannot start: cannot listen on {host}:{port} ({error.strerror}); set "
            "STRUCPRUNE_API_HOST and STRUCPRUNE_API_PORT to an address of this machine that is free"
        )


if __name__ == "__main__":
    main()
