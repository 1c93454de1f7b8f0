"""A load generator for HTTP/1.1 over loopback, small enough not to limit what is measured."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MakeRequest = Callable[[int], bytes]


def request(method: str, path: str, key: str = "", body: Any = None, **headers: str) -> bytes:
    """A request as it goes over the wire. Names of headers have _ for -."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: load"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load came to; times in seconds."""

    per_second: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times: list[float], wall_seconds: float) -> Figures:
        """Those of requests that took so long each, and so long all in all."""
        if len(times) < 2:
            raise ValueError("a load of fewer than two requests has no percentiles")
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        return cls(len(times) / wall_seconds, cuts[49], cuts[94], cuts[98])


class Connection:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """To a loopback port."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return int(head[9:12]), await self._reader.readexactly(length)

    async def stream(self, data: bytes) -> asyncio.StreamReader:
        """The answer as it comes, its head read."""
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise RuntimeError(f"no stream: {head.splitlines()[0].decode()}")
        return self._reader

    def close(self) -> None:
        """Close it."""
        self._writer.close()


async def load(port: int, make: MakeRequest, *, connections: int, seconds: float) -> Figures:
    """Send requests over so many connections for so long, each once the last is answered.

    Args:
        port: Of the server.
        make: The nth request.
        connections: At once.
        seconds: For so long.

    Raises:
        RuntimeError: a request was refused.
    """
    times: list[float] = []
    number = 0

    async def one() -> None:
        nonlocal number
        connection = await Connection.open(port)
        while time.perf_counter() < until:
            number += 1
            data = make(number)
            sent = time.perf_counter()
            status, body = await connection.send(data)
            times.append(time.perf_counter() - sent)
            if not 200 <= status < 300:
                raise RuntimeError(f"{status}: {body[:500].decode(errors='replace')}")
        connection.close()

    began = time.perf_counter()
    until = began + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one())
    return Figures.of(times, time.perf_counter() - began)
