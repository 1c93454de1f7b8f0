"""How much a greedy tenant slows another one: a thousand event streams, and hostile models.

    .venv/bin/python -m benchmarks.greedy [--seconds 6] [--json FILE]

Starts the product on this machine (no worker), and measures how long the requests of tenant `calm`
take, first alone, then while tenant `greedy`

- holds 1,000 event streams, ten of each of a hundred jobs,
- validates a model of four shards with 15.9 MB headers of empty tensors over and over,
- validates the most expensive model that the bounds on headers allow, over and over.

Memory is the largest resident memory of the API with its helpers. All share the machine's cores
with the load generator. The exit status is 0 if the median of `get` stays under 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load import body
from benchmarks.load_client import Connection, Figures, load, request
from benchmarks.output import tell, write_result
from embedded.stack import WORK_BUCKET, Stack
from strucprune_core.access.keys import hash_key, new_key
from strucprune_core.client.calls import JOBS
from tests.support.hostile_model import MANY_EXPERTS, make_hostile_model
from tests.support.processes import descendants
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

STREAMS, STREAMS_OF_JOB = 1000, 10
GREEDY_CONNECTIONS, CALM_CONNECTIONS = 8, 4
MEDIAN_SECONDS = 0.1
# Until a stream has told what happened before it began.
_READY_SECONDS = 30.0
_MB = 1e6


class TwoTenants(Stack):
    """The product with the models in its bucket, and a key for each of two tenants."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, workers=0)
        self.keys = {name: new_key(self._pepper) for name in ("calm", "greedy")}
        self.port = int(self.api_url.rpartition(":")[2])

    @property
    def environment(self) -> dict[str, str]:
        """With both keys."""
        entries = [
            {"tenant": name, "key_hmac": hash_key(key, self._pepper)}
            for name, key in self.keys.items()
        ]
        return {**super().environment, "STRUCPRUNE_API_KEYS": json.dumps(entries)}

    def start(self) -> None:
        """Start everything, and upload the models and a text."""
        super().start()
        tiny = make_tiny_llama(self._directory / "model")
        models = {
            "model": tiny,
            "empty": make_hostile_model(
                self._directory / "empty", tiny, shards=4, header_bytes=15_900_000
            ),
            "dear": make_hostile_model(
                self._directory / "dear", tiny, shards=2, header_bytes=2_800_000, **MANY_EXPERTS
            ),
        }
        s3 = self.s3.client()
        for name, directory in models.items():
            for path in directory.iterdir():
                s3.upload_file(str(path), WORK_BUCKET, f"{name}/{path.name}")
        s3.put_object(Bucket=WORK_BUCKET, Key="text.txt", Body=make_text().encode())

    def memory_mb(self) -> float:
        """Resident memory of the API and its helpers."""
        if self.api is None:
            raise RuntimeError("it does not run")
        pids = [self.api.pid, *descendants(self.api.pid)]
        return sum(map(_resident_mb, pids))


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0  # it has just ended
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


@asynccontextmanager
async def validating(stack: TwoTenants, model: str) -> AsyncIterator[list[float]]:
    """The greedy tenant validates a model over and over; yields the times that this takes."""
    hostile = {**body(), "model": {"uri": f"s3://{WORK_BUCKET}/{model}"}}
    data = request("POST", f"{JOBS}/validate", stack.keys["greedy"], hostile)
    times: list[float] = []

    async def again() -> None:
        connection = await Connection.open(stack.port)
        while True:
            began = time.perf_counter()
            status, answer = await connection.send(data)
            if status != 200 or json.loads(answer)["valid"]:
                raise RuntimeError(f"{status}: {answer[:300].decode()}")
            times.append(time.perf_counter() - began)

    tasks = [asyncio.create_task(again()) for _ in range(GREEDY_CONNECTIONS)]
    await asyncio.sleep(1.0)
    try:
        yield times
    finally:
        await _end(tasks)


@asynccontextmanager
async def streaming(stack: TwoTenants) -> AsyncIterator[list[float]]:
    """The greedy tenant follows its jobs; yields how late its watchers hear of an event."""
    key = stack.keys["greedy"]
    connection = await Connection.open(stack.port)
    jobs = []
    for _ in range(STREAMS // STREAMS_OF_JOB):
        _, answer = await connection.send(request("POST", JOBS, key, body()))
        jobs.append(json.loads(answer)["id"])
    delays: list[float] = []
    paused_at: dict[str, float] = {}

    async def listen(job_id: str, ready: asyncio.Semaphore) -> None:
        watching = await Connection.open(stack.port)
        path = f"{JOBS}/{job_id}/events"
        stream = await watching.stream(request("GET", path, key, Accept="text/event-stream"))
        while line := await stream.readline():
            if line.startswith(b"data:"):
                ready.release()
                if job_id in paused_at:
                    delays.append(time.perf_counter() - paused_at[job_id])
        raise RuntimeError("a stream ended")

    async def pause_all() -> None:
        connection = await Connection.open(stack.port)
        for job_id in jobs:
            await asyncio.sleep(0.1)
            paused_at[job_id] = time.perf_counter()
            await connection.send(request("POST", f"{JOBS}/{job_id}/pause", key))

    ready = asyncio.Semaphore(0)
    tasks: list[asyncio.Task[None]] = []
    try:
        for job_id in jobs:
            for _ in range(STREAMS_OF_JOB):
                tasks.append(asyncio.create_task(listen(job_id, ready)))
            for _ in range(STREAMS_OF_JOB):
                await asyncio.wait_for(ready.acquire(), _READY_SECONDS)
        tasks.append(asyncio.create_task(pause_all()))
        yield delays
    finally:
        await _end(tasks)


@asynccontextmanager
async def alone(stack: TwoTenants) -> AsyncIterator[list[float]]:
    """Nobody else asks for anything."""
    yield []


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for failure in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(failure, Exception):
            raise failure


async def measure_calm(
    stack: TwoTenants, seconds: float, greed: Callable[[], Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Figures of the calm tenant's requests while the other one does something."""
    key = stack.keys["calm"]
    connection = await Connection.open(stack.port)
    _, answer = await connection.send(request("POST", JOBS, key, body()))
    job_id = json.loads(answer)["id"]
    get = request("GET", f"{JOBS}/{job_id}", key)
    most = 0.0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, stack.memory_mb())
            await asyncio.sleep(0.05)

    async with greed() as times:
        watching = asyncio.create_task(watch())
        gets = await load(stack.port, lambda _: get, connections=CALM_CONNECTIONS, seconds=seconds)
        validations = await load(
            stack.port,
            lambda _: request("POST", f"{JOBS}/validate", key, body()),
            connections=1,
            seconds=seconds,
        )
        await _end([watching])
        found = Figures.of(times, 2 * seconds) if len(times) > 1 else None
    tell(
        f"get p50 {gets.p50 * 1e3:.0f} ms, p95 {gets.p95 * 1e3:.0f} ms; "
        f"validate p50 {validations.p50 * 1e3:.0f} ms, p95 {validations.p95 * 1e3:.0f} ms; "
        f"API and helpers {most:.0f} MB"
        + (f"; greedy p50 {found.p50 * 1e3:.0f} ms" if found else "")
    )
    return {
        "get": asdict(gets),
        "validate": asdict(validations),
        "greedy": found and asdict(found),
        "memory_mb": most,
    }


async def measure(
    stack: TwoTenants, seconds: float, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Everything in turn."""
    greeds: dict[str, Callable[[], Any]] = {
        "alone": lambda: alone(stack),
        f"{STREAMS:,} event streams": lambda: streaming(stack),
        "headers of empty tensors": lambda: validating(stack, "empty"),
        "the most expensive headers allowed": lambda: validating(stack, "dear"),
    }
    found = {}
    for name, greed in greeds.items():
        tell(f"{name}:")
        found[name] = await measure_calm(stack, seconds, greed, tell)
    return found


def table(result: dict[str, dict[str, Any]]) -> str:
    """The result as a Markdown table."""
    lines = ["| meanwhile | get p50 | p95 | validate p50 | p95 | API and helpers |"]
    lines.append("|---|---|---|---|---|---|")
    for name, found in result.items():
        times = [found[kind][part] for kind in ("get", "validate") for part in ("p50", "p95")]
        shown = " | ".join(f"{value * 1e3:.0f} ms" for value in times)
        lines.append(f"| {name} | {shown} | {found['memory_mb']:.0f} MB |")
    return "\n".join(lines)


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.greedy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each kind of request")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, TwoTenants(Path(name)) as stack:
        result = asyncio.run(measure(stack, options.seconds, tell))
    write_result(options.json, result)
    slow = [name for name, found in result.items() if found["get"]["p50"] > MEDIAN_SECONDS]
    tell("\n".join(f"missed: {name}" for name in slow) or "no bar was missed")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
