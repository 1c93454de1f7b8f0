"""Clients that are slow on purpose, on a real server: each is cut off, and holds nobody up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import redis
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from api import middleware
from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.server import BoundedProtocol
from api.settings import Settings
from tests.support.serving import served

SOON = 0.3
# A client on a busy machine may well take nothing for the other one.
STALL = 1.0
LARGE_BYTES = 1 << 24
# Far more than the limits, far less than a test may take.
LATE = 10.0


@pytest.fixture
def app(
    settings: Settings,
    flush: redis.Redis,
    inspectors: Inspectors,
    monkeypatch: pytest.MonkeyPatch,
) -> FastAPI:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", SOON)
    monkeypatch.setattr(BoundedProtocol, "stall_seconds", STALL)
    monkeypatch.setattr(middleware.BodyLimit.__init__, "__defaults__", (SOON,))
    return create_app(settings, inspectors)


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    with served(app, max_connections=8) as port:
        yield port


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=LATE) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, within `LATE`."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        return data
    return data


def trickle(connection: socket.socket, data: bytes) -> float:
    """Send a byte now and then, until the other side has closed; how long that took."""
    began = time.monotonic()
    connection.settimeout(0.05)
    for byte in data * 1000:
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(1024) == b"":
                return time.monotonic() - began
        except TimeoutError:
            assert time.monotonic() - began < LATE
        except OSError:
            return time.monotonic() - began
    raise AssertionError("it was never closed")


def test_a_connection_that_asks_for_nothing(port: int) -> None:
    with connected(port) as connection:
        assert rest(connection) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\n"], ids=["nothing", "half"])
def test_a_head_that_trickles(port: int, sent: bytes) -> None:
    """Each byte would hold a limit off that counts from the last one."""
    with connected(port) as connection:
        connection.sendall(sent)
        assert trickle(connection, b"X: y") < LATE


def test_a_head_that_trickles_on_a_kept_connection(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        assert trickle(connection, b"GET") < LATE


def test_two_requests_on_one_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who gets on is cut off, however long the connection lasts."""
    limit = 2.0  # far above what a busy machine needs for one request
    monkeypatch.setattr(BoundedProtocol, "head_seconds", limit)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        began = time.monotonic()
        while time.monotonic() - began < 1.5 * limit:
            assert client.get("/healthz").status_code == 200
            time.sleep(limit / 20)


def head(path: str, length: int, key: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_a_body_that_does_not_come(port: int, keys: dict[str, str]) -> None:
    with connected(port) as connection:
        connection.sendall(head("/v1/pruning-jobs", 100, keys["acme"]) + b"{")
        answer = rest(connection)
    first, _, body = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in first.lower()
    assert json.loads(body)["code"] == "request_timeout"


def test_a_body_that_trickles(port: int, keys: dict[str, str]) -> None:
    with connected(port) as connection:
        connection.sendall(head("/v1/pruning-jobs", 100_000, keys["acme"]))
        assert trickle(connection, b"  ") < LATE


def test_a_body_that_nobody_reads_and_that_trickles(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(head("/nowhere", 100_000, "none"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        assert trickle(connection, b"  ") < LATE


def test_an_answer_that_is_not_taken(app: FastAPI, port: int) -> None:
    app.add_api_route("/large", lambda: PlainTextResponse("x" * LARGE_BYTES), methods=["GET"])
    with connected(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(4 * STALL)
        assert len(rest(connection)) < LARGE_BYTES
    # Whoever takes it gets it all.
    assert len(httpx.get(f"http://127.0.0.1:{port}/large").content) == LARGE_BYTES


def test_more_connections_than_are_taken(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "head_seconds", LATE)
    held = [socket.create_connection(("127.0.0.1", port), timeout=LATE) for _ in range(8)]
    for connection in held:  # each stays open: no limit of time is over yet
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
    with connected(port) as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: " in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_many_connections"
    for connection in held:
        connection.close()
    until = time.monotonic() + LATE
    while True:  # there is room again
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
            return
        except (httpx.HTTPError, AssertionError):
            assert time.monotonic() < until
