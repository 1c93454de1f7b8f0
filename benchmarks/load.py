"""How much load the service handles: requests per second and their times, a long queue, and memory.

    .venv/bin/python -m benchmarks.load [--jobs 10000] [--seconds 10] [--json FILE]

Starts the whole product on this machine with two workers whose solve is trivial, and measures in
one run, with the same load generator and one process of each server:

- the framework's empty endpoint and an async endpoint that reads a job's hash from Redis, then
  submit, get, list and validate, in turns: requests per second, 50th, 95th and 99th percentile;
- event streams of one job to 500 watchers: how long after an event each of them receives it;
- JOBS jobs, submitted while no worker runs and then drained by two;
- resident memory of API and workers at the beginning, in the middle and at the end of that;
- how long a job waits while 1,000 jobs of another tenant wait already, in units of a job's length,
  with one worker and with two (`--turns-only` measures only this).

All processes share the machine's cores with the generator. The exit status is 0 if `get` reaches at
least half of the rate of the async Redis read, no process holds over a tenth more memory at the end
of the queue than half-way through, and no job waits for longer than `LONGEST_WAIT_JOBS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from api.jobs.state import JobState
from benchmarks.load_client import Connection, Figures, MakeRequest, load, request
from benchmarks.load_turns import OTHER, measure_turns
from benchmarks.output import tell, write_result
from embedded.processes import ManagedProcess, accepts_connections, free_ports
from embedded.stack import ROOT, WORK_BUCKET, Stack
from strucprune_core.client.calls import JOBS
from tests.support.processes import descendants
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

WATCHERS = 500
ROUNDS = 3
# Of the async Redis read's requests per second, what `get` has to reach.
GET_SHARE = 0.5
# Of its memory half-way through the queue, what a process may hold at the end.
MEMORY_GROWTH = 1.1
# In lengths of a job, what the first job of a tenant may wait for those of another: for the rest of
# one that runs, and for the service's own part.
LONGEST_WAIT_JOBS = 1.5
# Many jobs of one tenant are what is measured.
LIMITS = json.dumps({"kept_jobs": None, "kept_bytes": None})
_MB = 1e6


class LoadStack(Stack):
    """The product with trivial workers, and the reference beside it."""

    def __init__(self, directory: Path) -> None:
        # No worker yet: what is submitted waits.
        super().__init__(
            directory, workers=0, settings={"STRUCPRUNE_LIMITS": LIMITS}, tenants=[OTHER]
        )
        self.port = int(self.api_url.rpartition(":")[2])
        self.reference_port = free_ports(1)[0]
        self.reference: ManagedProcess | None = None

    def start(self) -> None:
        """Start everything; the model and a text are in the bucket."""
        super().start()
        s3 = self.s3.client()
        for path in make_tiny_llama(self._directory / "model").iterdir():
            s3.upload_file(str(path), WORK_BUCKET, f"model/{path.name}")
        s3.put_object(Bucket=WORK_BUCKET, Key="text.txt", Body=make_text().encode())
        self.reference = ManagedProcess(
            "reference",
            [
                sys.executable,
                *("-m", "benchmarks.load_reference"),
                *(str(self.reference_port), self.valkey.url),
            ],
            log_directory=self.log_directory,
            cwd=ROOT,
        )
        self.reference.wait_ready(lambda: accepts_connections(self.reference_port))

    def start_workers(self, count: int, job_seconds: float = 0.0) -> None:
        """Start workers whose jobs take so long, and wait until they are ready."""
        for number in range(count):
            worker = self._module(f"worker-{number}", "benchmarks.load_worker", f"{job_seconds}")
            worker.wait_ready(lambda worker=worker: " ready." in worker.log_tail())  # type: ignore[misc]
            self.workers.append(worker)

    def stop(self) -> None:
        """Stop everything."""
        if self.reference is not None:
            self.reference.stop()
        super().stop()

    def memory(self) -> dict[str, float]:
        """Resident memory of each process with all below it, MB."""
        processes = {f"worker {number}": worker for number, worker in enumerate(self.workers)}
        if self.api is not None:
            processes["API"] = self.api
        return {
            name: sum(map(_resident_mb, [process.pid, *descendants(process.pid)]))
            for name, process in processes.items()
        }

    def states(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with redis.Redis.from_url(self.valkey.url, decode_responses=True) as client:
            found: Any = client.hgetall("strucprune:counts")
        return {state: int(count) for state, count in found.items()}


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0  # a solve that has ended
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def body() -> dict[str, Any]:
    """A job like any other, whose output is its own."""
    uri = f"s3://{WORK_BUCKET}"
    return {
        "model": {"uri": f"{uri}/model"},
        "output": {"uri_prefix": f"{uri}/output/{uuid4().hex}"},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": f"{uri}/text.txt", "samples": 16, "sequence_length": 32},
        "runtime": {"device": "cpu"},
        "labels": {"team": "load"},
    }


async def submit(connection: Connection, key: str) -> str:
    """Submit a job; its id."""
    status, data = await connection.send(request("POST", JOBS, key, body()))
    if status != 202:
        raise RuntimeError(f"{status}: {data[:500].decode(errors='replace')}")
    job_id: str = json.loads(data)["id"]
    return job_id


async def measure_requests(
    stack: LoadStack, connections: int, seconds: float, tell: Callable[[str], None]
) -> dict[str, Figures]:
    """Figures of each kind of request: of its best round of three, in turns with all others."""
    connection = await Connection.open(stack.port)
    job_id = await submit(connection, stack.api_key)
    for _ in range(60):
        await submit(connection, stack.api_key)  # for pages of 50 jobs
    connection.close()
    key = stack.api_key
    get = request("GET", f"{JOBS}/{job_id}", key)
    page = request("GET", f"{JOBS}?limit=50", key)
    empty = request("GET", "/empty")
    read = request("GET", f"/read/strucprune:job:{job_id}")
    kinds: dict[str, tuple[int, MakeRequest]] = {
        "empty endpoint": (stack.reference_port, lambda _: empty),
        "async Redis read": (stack.reference_port, lambda _: read),
        "get": (stack.port, lambda _: get),
        "list of 50": (stack.port, lambda _: page),
        "submit": (stack.port, lambda _: request("POST", JOBS, key, body())),
        "validate": (stack.port, lambda _: request("POST", f"{JOBS}/validate", key, body())),
    }
    best: dict[str, Figures] = {}
    for _ in range(ROUNDS):
        for name, (port, make) in kinds.items():
            found = await load(port, make, connections=connections, seconds=seconds / ROUNDS)
            if name not in best or found.per_second > best[name].per_second:
                best[name] = found
    tell(f"{'':18}{'per second':>11}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    for name, figures in best.items():
        times = "".join(f"{value * 1e3:9.1f}" for value in (figures.p50, figures.p95, figures.p99))
        tell(f"{name:18}{figures.per_second:11.0f}{times}")
    return best


async def measure_watchers(stack: LoadStack, tell: Callable[[str], None]) -> Figures:
    """How long after an event each of many watchers receives it."""
    connection = await Connection.open(stack.port)
    job_id = await submit(connection, stack.api_key)
    watch = request("GET", f"{JOBS}/{job_id}/events", stack.api_key, Accept="text/event-stream")
    happened: dict[str, float] = {}
    delays: list[float] = []

    async def listen(ready: asyncio.Semaphore) -> None:
        connection = await Connection.open(stack.port)  # kept: without its writer it is closed
        stream = await connection.stream(watch)
        while line := await stream.readline():
            if line.startswith(b"data:"):
                state = json.loads(line[5:])["data"].get("state", "")
                if state == JobState.QUEUED and "paused" not in happened:
                    ready.release()
                elif state in happened:
                    delays.append(time.perf_counter() - happened[state])
                if state == JobState.CANCELLED:
                    connection.close()
                    return
        raise RuntimeError("a stream ended before its job did")

    ready = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        for _ in range(WATCHERS):
            group.create_task(listen(ready))
        for _ in range(WATCHERS):
            await ready.acquire()
        began = time.perf_counter()
        for verb, state in (("pause", JobState.PAUSED), ("cancel", JobState.CANCELLED)):
            happened[state] = time.perf_counter()
            await connection.send(request("POST", f"{JOBS}/{job_id}/{verb}", stack.api_key))
            await asyncio.sleep(3.0)
    figures = Figures.of(delays, time.perf_counter() - began)
    tell(
        f"{len(delays)} events to {WATCHERS} watchers: heard after p50 {figures.p50 * 1e3:.0f} ms, "
        f"p95 {figures.p95 * 1e3:.0f} ms, p99 {figures.p99 * 1e3:.0f} ms"
    )
    return figures


async def measure_queue(stack: LoadStack, jobs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Submit many jobs, then let two workers drain them."""
    before = sum(stack.states().values())
    memory = [stack.memory()]
    began = time.perf_counter()
    numbers = iter(range(jobs))

    async def some() -> None:
        connection = await Connection.open(stack.port)
        for _ in numbers:
            await submit(connection, stack.api_key)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(some())
    submitted = time.perf_counter() - began
    tell(f"{jobs} jobs submitted in {submitted:.0f} s, {jobs / submitted:.0f} a second")
    stack.start_workers(2)
    memory.append(stack.memory())
    waiting = stack.states().get("queued", 0)
    began, half = time.perf_counter(), False
    while (left := stack.states().get("queued", 0)) > 0:
        if not half and left < waiting / 2:
            memory.append(stack.memory())
            half = True
        await asyncio.sleep(1.0)
    drained = time.perf_counter() - began
    await asyncio.sleep(2.0)
    memory.append(stack.memory())
    states = stack.states()
    tell(
        f"{waiting} jobs drained by 2 workers in {drained:.0f} s, {waiting / drained:.1f} a second"
    )
    for name in memory[-1]:
        shown = ", ".join(f"{at[name]:.0f}" for at in memory if name in at)
        tell(f"memory of {name}, MB: {shown}")
    ended = {state: states.get(state, 0) for state in ("succeeded", "cancelled")}
    if sum(ended.values()) != before + jobs:
        raise RuntimeError(f"of {before + jobs} jobs, {states} are left")
    return {
        "jobs": jobs,
        "submitted_seconds": submitted,
        "drained": waiting,
        "drained_seconds": drained,
        "memory_mb": memory,
    }


async def measure(
    options: argparse.Namespace, stack: LoadStack, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Everything in turn."""
    requests = await measure_requests(stack, options.connections, options.seconds, tell)
    watchers = await measure_watchers(stack, tell)
    queue = await measure_queue(stack, options.jobs, tell) if options.jobs else None
    return {
        "cpus": os.cpu_count(),
        "connections": options.connections,
        "requests": {name: asdict(figures) for name, figures in requests.items()},
        "watchers": asdict(watchers),
        "queue": queue,
    }


def measure_all_turns(jobs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The waits behind another tenant's backlog, by the number of workers."""
    found = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as name, LoadStack(Path(name)) as stack:
            found[f"{workers}"] = measure_turns(stack, workers, jobs, body, tell)
    return found


def requests_table(result: dict[str, Any]) -> str:
    """Requests and watchers as a Markdown table."""
    lines = ["| | a second | p50 | p95 | p99 |", "|---|---|---|---|---|"]

    def row(name: str, per_second: str, figures: dict[str, float]) -> None:
        times = " | ".join(f"{figures[part] * 1e3:.0f} ms" for part in ("p50", "p95", "p99"))
        lines.append(f"| {name} | {per_second} | {times} |")

    for name, figures in result["requests"].items():
        row(name, f"{figures['per_second']:,.0f}", figures)
    row(f"an event, to each of {WATCHERS} watchers", "", result["watchers"])
    return "\n".join(lines)


def misses(result: dict[str, Any]) -> list[str]:
    """Which bars were missed, in words."""
    found = []
    for workers, waits in result["turns"].items():
        if waits["longest_wait_jobs"] > LONGEST_WAIT_JOBS:
            found.append(f"with {workers} workers, a job waited {waits['longest_wait_jobs']:.1f}")
    rates = {name: figures["per_second"] for name, figures in result["requests"].items()}
    share = rates["get"] / rates["async Redis read"]
    if share < GET_SHARE:
        found.append(f"get reaches {share:.2f} of the async Redis read")
    if result["queue"]:
        *_, half, end = result["queue"]["memory_mb"]
        for name, megabytes in end.items():
            if megabytes > MEMORY_GROWTH * half[name]:
                found.append(f"{name} grew from {half[name]:.0f} to {megabytes:.0f} MB")
    return found


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="in the queue; 0 leaves that out")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind of request")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--backlog", type=int, default=1000, help="of another tenant, for turns")
    parser.add_argument(
        "--turns-only",
        action="store_true",
        help="measure these alone; the rest is read from --json",
    )
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    if options.turns_only and options.json is None:
        parser.error("--turns-only needs --json, the result that it is added to")

    if options.turns_only:
        result = json.loads(options.json.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as name, LoadStack(Path(name)) as stack:
            result = asyncio.run(measure(options, stack, tell))
    result["turns"] = measure_all_turns(options.backlog, tell)
    write_result(options.json, result)
    found = misses(result)
    tell("\n".join(f"missed: {miss}" for miss in found) or "no bar was missed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
