"""The API's server: uvicorn, with time limits and a limit on connections that it lacks.

Uvicorn closes connections that are idle between requests. It does not close one that sends half of
a request's head and waits, nor one that does not read its answer. `middleware` limits bodies, and
`turns` and `long_answers` limit the requests of one tenant.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from http import HTTPStatus
from typing import Any, ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS

_log = logging.getLogger(__name__)

# On SIGTERM, long-polls and event streams are ended after this time. Their clients reconnect.
GRACEFUL_SHUTDOWN_SECONDS = 10
# From the first byte of a request, or from the connection, to the end of the request's head.
HEAD_SECONDS = 10.0
# A client that is sent an answer must read `_STALL_BYTES` of it in this time.
STALL_SECONDS = 30.0
_STALL_BYTES = 16 * 1024
# File descriptors that the process needs itself: for Redis, object storage and helpers.
_OWN_DESCRIPTORS = 256


class BoundedProtocol(H11Protocol):
    """A connection with time limits for the client.

    Attributes:
        max_connections: Further ones are answered with 503 and closed.
        head_seconds: See `HEAD_SECONDS`.
        stall_seconds: See `STALL_SECONDS`.
    """

    max_connections: ClassVar[int]
    head_seconds: ClassVar[float] = HEAD_SECONDS
    stall_seconds: ClassVar[float] = STALL_SECONDS

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, or refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """Begin to check that the client reads its answer."""
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        """Stop checking: the client has read enough."""
        super().resume_writing()
        _cancel(self._stall_timer)
        self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        _cancel(self._head_timer)
        self._head_timer = None
        _cancel(self._stall_timer)
        self._stall_timer = None
        super().connection_lost(exc)

    def _watch_answer(self, before_bytes: int | None = None) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if before_bytes is not None and left_bytes > before_bytes - _STALL_BYTES:
            self.transport.abort()
            return
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._watch_answer, left_bytes)

    def _watch_head(self) -> None:
        """Run a timer while no request is being answered. Arriving bytes do not restart it."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _full_answer() -> bytes:
    status = HTTPStatus.SERVICE_UNAVAILABLE
    problem = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status,
        "detail": "There are too many connections.",
        "code": "too_many_connections",
        "request_id": "",
        "errors": [],
    }
    body = json.dumps(problem).encode()
    lines = [
        f"HTTP/1.1 {status} {status.phrase}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        f"Retry-After: {RETRY_AFTER_SECONDS}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


_FULL = _full_answer()


def server_config(app: FastAPI, max_connections: int, **more: Any) -> uvicorn.Config:
    """The configuration of the API's server.

    Args:
        app: The application.
        max_connections: Most at once; fewer if the system does not allow so many open files.
        more: Further options of uvicorn.
    """
    allowed = _raise_open_files(max_connections + _OWN_DESCRIPTORS) - _OWN_DESCRIPTORS
    if allowed < max_connections:
        _log.warning("only %d connections accepted: the limit of open files is low", allowed)
    protocol = type(
        "Protocol", (BoundedProtocol,), {"max_connections": min(allowed, max_connections)}
    )
    return uvicorn.Config(
        app, http=protocol, ws="none", server_header=False, **{**_OPTIONS, **more}
    )


_OPTIONS: dict[str, Any] = {"timeout_graceful_shutdown": GRACEFUL_SHUTDOWN_SECONDS}


def _raise_open_files(wanted: int) -> int:
    """Raise the limit of open files, as far as the system allows; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return wanted
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return raised
