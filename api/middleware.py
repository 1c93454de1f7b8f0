"""Middleware for every request: its id, its trace, safe headers, and limits on its body."""

from __future__ import annotations

import asyncio
import re
import secrets
from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.jobs.tracing import Tracing, accepted
from api.telemetry import route_of

REQUEST_ID_HEADER = "X-Request-ID"
# Enough for a body, which has at most some hundred kilobytes.
BODY_SECONDS = 30.0
# Ids accepted from a caller or proxy. Others could forge log lines.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")


class RequestId:
    """Gives each request an id, the caller's if it is safe, and returns it in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with an id in its state."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = offered if _SAFE_ID.fullmatch(offered) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Trace:
    """Puts each request into a trace: the caller's (`traceparent`), or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within a span named by the route that answers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tracing: Tracing = scope["app"].state.tracing
        parent = accepted(Headers(scope=scope).get("traceparent"))
        with tracing.span(scope["method"], parent) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.attributes["http.response.status_code"] = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                span.name = f"{scope['method']} {route_of(scope)}"
                span.attributes["http.request.method"] = scope["method"]
                span.attributes["http.route"] = route_of(scope)


class SafeHeaders:
    """Adds headers that keep browsers from guessing an answer's type, running or framing it.

    Pages set policies of their own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_safely)


_SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class BodyLimit:
    """Refuses bodies that are too large, as declared or while they arrive, or too slow.

    Args:
        app: What comes next.
        max_bytes: Limit for a body.
        seconds: Time limit from the end of a request's head to the end of its body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            refusal = problems.response(Request(scope), self._too_large())
            await refusal(scope, receive, send)
            return
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # the app now only waits for the client to disconnect
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> problems.ApiError:
        return problems.ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "request_too_large",
            f"The body is over the limit of {self._max_bytes} bytes.",
            headers={"Connection": "close"},
        )

    def _too_slow(self) -> problems.ApiError:
        return problems.ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            "request_timeout",
            f"The body has not arrived within {self._seconds:g} seconds.",
            headers={"Connection": "close"},
        )
