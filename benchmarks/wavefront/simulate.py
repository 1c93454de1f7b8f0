"""Simulates workers on a graph: list scheduling by the rules of `run.runner` and `run.following`.

Whoever is free takes the first unit that is due. A unit that follows another one is due once the
other's first chunk is stored, computes its chunks as they come, and is stored after the other. A
worker stores a unit while it computes the next. Every worker has its own bandwidth to storage.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import File
from strucprune_core.run.runner import (
    ALONE_KINDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
)


@dataclass(frozen=True, slots=True)
class Storage:
    """How a worker reaches the workspace.

    Attributes:
        bytes_per_second: Each way, of each worker.
        latency_seconds: Of a request.
    """

    bytes_per_second: float
    latency_seconds: float

    def seconds(self, size_bytes: float, requests: int = 1) -> float:
        """What a transfer takes."""
        return requests * self.latency_seconds + size_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        units: The graph, in topological order.
        seconds: What computing each takes.
        size_bytes: Of a file.
        chunks: In how many chunks units that are followed hand on what they make.
    """

    units: Sequence[Unit]
    seconds: Mapping[str, float]
    size_bytes: Callable[[File], float]
    chunks: int


@dataclass(slots=True)
class _Done:
    """A unit that was begun: when its chunks are stored, and when it is."""

    worker: int
    chunks: list[float] = field(default_factory=list)
    finished: float = 0.0


@dataclass(slots=True)
class _Worker:
    storing_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """How it went.

    Attributes:
        seconds: Until all is stored.
        busy_seconds: Computing of all workers.
    """

    seconds: float
    busy_seconds: float


def simulate(
    work: Work,
    storage: Storage,
    workers: int,
    starting_seconds: float = 0.0,
    *,
    follow: bool = True,
) -> Course:
    """Let so many workers do all of it.

    Args:
        work: What is to be done.
        storage: Where it is kept.
        workers: How many.
        starting_seconds: After how long helpers begin; the first worker begins at once.
        follow: Whether units follow others that run; else they wait until these are finished.
    """
    return _Simulation(work, storage, workers, follow=follow).run(starting_seconds)


class _Simulation:
    def __init__(self, work: Work, storage: Storage, workers: int, *, follow: bool) -> None:
        self._work, self._storage = work, storage
        self._before = {
            unit.name: {*unit.after, *(file.unit for file in unit.reads)} - {*unit.follows}
            for unit in work.units
        }
        self._follow = follow and workers > 1
        self._writes: dict[str, set[File]] = {unit.name: set() for unit in work.units}
        for unit in work.units:
            for file in (*unit.reads, *unit.releases):
                self._writes[file.unit].add(file)
        self._followed = {name for unit in work.units for name in unit.follows}
        self._begun: dict[str, _Done] = {}
        self._left = {unit.name: unit for unit in work.units}
        self._workers = [_Worker() for _ in range(workers)]

    def run(self, starting_seconds: float) -> Course:
        turns = [
            (starting_seconds if worker else 0.0, worker) for worker in range(len(self._workers))
        ]
        heapq.heapify(turns)
        while self._left:
            now, worker = heapq.heappop(turns)
            unit = next((u for u in self._left.values() if self._is_due(u, worker, now)), None)
            heapq.heappush(turns, (self._do(unit, worker, now), worker))
        finished = max(done.finished for done in self._begun.values())
        return Course(finished, sum(self._work.seconds[unit.name] for unit in self._work.units))

    def _is_finished(self, name: str, now: float) -> bool:
        return name in self._begun and self._begun[name].finished <= now

    def _is_due(self, unit: Unit, worker: int, now: float) -> bool:
        # What is before those was finished when they began.
        return all(self._is_finished(name, now) for name in self._before[unit.name]) and all(
            self._is_finished(name, now) or self._may_follow(name, worker, now)
            for name in unit.follows
        )

    def _may_follow(self, name: str, worker: int, now: float) -> bool:
        done = self._begun.get(name)
        if done is None or not self._follow or done.worker == worker:
            return False
        return done.chunks[0] <= now

    def _do(self, unit: Unit | None, number: int, now: float) -> float:
        """Begin a unit, or wait; until when the worker has something to do."""
        worker = self._workers[number]
        if unit is None:
            if worker.storing_until > now:
                return worker.storing_until
            return self._looks_again(now)
        del self._left[unit.name]
        begins = max(now, worker.storing_until) if unit.kind in ALONE_KINDS else now
        done = self._begun[unit.name] = _Done(number)
        ends = self._compute(unit, done, begins)
        # Of one unit at a time, and after those that it follows.
        may_store = max(
            ends, worker.storing_until, *(self._begun[f].finished for f in unit.follows), 0.0
        )
        files = [
            file
            for file in self._writes[unit.name]
            if not (
                self._follow and unit.name in self._followed and file.name.startswith("hidden.")
            )
        ]
        requests = len(files) + 1 + (0 if self._follow else self._work.chunks - 1)
        size = sum(map(self._work.size_bytes, files))
        done.finished = worker.storing_until = may_store + self._storage.seconds(size, requests)
        return may_store

    def _handed_on(self, unit: Unit) -> set[File]:
        """What units that follow this one read of it."""
        followers = (each for each in self._work.units if unit.name in each.follows)
        return {file for each in followers for file in each.reads if file.unit == unit.name}

    def _looks_again(self, now: float) -> float:
        """When a worker without work sees what comes up next: it pauses longer and longer."""
        events = [
            at
            for done in self._begun.values()
            for at in (done.finished, *done.chunks[:1])
            if at > now
        ]
        until, pause = min(events), FIRST_PAUSE_SECONDS
        while now < until:
            now += pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return now

    def _compute(self, unit: Unit, done: _Done, begins: float) -> float:
        """Compute a unit chunk by chunk, as its input comes; when that ends."""
        chunks = self._work.chunks if unit.name in self._followed or unit.follows else 1
        read = [
            file
            for file in unit.reads
            if file.unit not in unit.follows and self._begun[file.unit].worker != done.worker
        ]
        now = begins + sum(self._storage.seconds(self._work.size_bytes(file)) for file in read)
        of_chunk = [file for file in unit.reads if file.unit in unit.follows]
        for number in range(chunks):
            for file in of_chunk:
                before = self._begun[file.unit]
                if before.worker != done.worker:
                    size = self._work.size_bytes(file) / chunks
                    there = before.chunks[number] if before.chunks else before.finished
                    now = max(now, there + self._storage.seconds(size, 2))
            now += self._work.seconds[unit.name] / chunks
            if unit.name in self._followed:
                size = sum(map(self._work.size_bytes, self._handed_on(unit)))
                done.chunks.append(now + self._storage.seconds(size / chunks))
        return now
