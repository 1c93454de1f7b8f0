"""The app on a real server, in a thread: the test client does not stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from api.server import server_config


@contextmanager
def served(app: FastAPI, max_connections: int = 1000) -> Iterator[int]:
    """The loopback port of the running app."""
    config = server_config(
        app, max_connections, port=0, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
