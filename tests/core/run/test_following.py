"""Workers that follow one another, killed and handed over at random: a simulation of one process.

The runner, the workspace and the rules of following are the real ones. Steps are fake and take no
time. Every worker is a thread, of which one runs at a time: which one goes on is drawn wherever a
worker sleeps or looks for a stop. A worker that is killed never goes on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import ObjectNotFound, Stopped
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.plan.graph import Unit, build_graph
from strucprune_core.run import following, runner
from strucprune_core.run.artifacts import Capture, File
from strucprune_core.run.background import Background
from strucprune_core.run.following import Following
from strucprune_core.run.runner import Run, help_out
from strucprune_core.run.workspace import Draft, LostFile, Stored, Workspace
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.store import ObjectInfo, Tick, ignore_bytes

T = TypeVar("T")

LAYERS = 5
CHUNKS = [range(0, 2), range(2, 4), range(4, 5)]
GRAPH = build_graph(
    layers=LAYERS, shards=[range(LAYERS)], energy="forward", evaluate=False, chunks=CHUNKS
)
# As many turns as no run takes that gets on.
MOST_TURNS = 30_000


class Killed(BaseException):
    """Ends the thread of a worker that is dead, when all is over."""


class MemoryStore:
    """Objects in memory, as in S3.

    Args:
        pause: Called before each write, so that others may come first.
    """

    uri = "memory"

    def __init__(self, pause: Callable[[], None]) -> None:
        self.objects: dict[str, bytes] = {}
        self._pause = pause

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return bytearray(self.objects[key])

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._pause()
        return self.objects.setdefault(key, data) is data

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        self._pause()
        self.objects[key] = path.read_bytes()

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        path.write_bytes(self.read(key))

    def delete(self, key: str) -> None:
        self._pause()
        self.objects.pop(key, None)

    def local_path(self, key: str) -> None:
        return None


class AtOnce(Background[T]):
    """A task is done when it is begun, by the worker's own thread, whose turn may end meanwhile."""

    def start(self, task: Callable[[], T]) -> None:
        self._tasks.append(future := Future[T]())
        try:
            future.set_result(self._run(task))
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise


@dataclass
class Worker:
    name: str
    thread: threading.Thread | None = None
    turn: threading.Event = field(default_factory=threading.Event)
    frozen: bool = False
    ended: bool = False
    error: BaseException | None = None


class World:
    """All workers, whose turn it is, what they hold, and the clock."""

    def __init__(
        self, root: Path, random: Random, *, kills: int, most: int, devices: Sequence[str]
    ) -> None:
        self.root, self.random, self.kills, self.most = root, random, kills, most
        self.devices = devices
        self.store = MemoryStore(lambda: self.sleep(0.0))
        self.now = 0.0
        self.turns = 0
        self.workers: dict[str, Worker] = {}
        self.held: dict[str, list[str]] = {}
        self.back = threading.Event()
        self.done: list[str] = []
        self.over = False

    # What workers call.

    def sleep(self, seconds: float) -> None:
        """Let others go on; the clock moves, though not at the pace of any one of them."""
        worker = self.workers.get(threading.current_thread().name)
        if worker is None:
            return  # The test itself looks at the store.
        self.now += seconds / 2
        self.back.set()
        worker.turn.wait()
        worker.turn.clear()
        if worker.frozen:
            raise Killed

    def safe_point(self) -> None:
        self.sleep(0.01)

    def reserve(self, who: str, ready: Sequence[str], keeping: str | None) -> str | None:
        if who not in self.held:
            raise Stopped("lapsed")
        assert keeping is None or keeping in self.held[who]
        self.held[who] = [] if keeping is None else [keeping]
        free = [unit for unit in ready if unit not in self.all_held(who)]
        self.held[who] += free[:1]
        return free[0] if free else None

    def all_held(self, who: str) -> frozenset[str]:
        if who not in self.held:
            raise Stopped("lapsed")
        return frozenset(unit for units in self.held.values() for unit in units)

    # The course of things.

    def run(self) -> None:
        """Let workers go on at random until all units are finished."""
        try:
            while not self.finished:
                self.turns += 1
                assert self.turns < MOST_TURNS, f"no progress: {self.held}"
                alive = [each for each in self.workers.values() if not each.ended]
                alive = [each for each in alive if not each.frozen]
                serving = [each for each in alive if each.name in self.held]
                if not serving or (len(self.workers) < self.most and self.random.random() < 0.05):
                    self.start()  # The dead are not replaced, until nobody is left.
                    continue
                if self.kills and self.random.random() < 0.02:
                    self.kills -= 1
                    victim = self.random.choice(serving)
                    del self.held[victim.name]  # Its lease lapses;
                    victim.frozen = self.random.random() < 0.7  # it may be at work all the same.
                    continue
                self.step(self.random.choice(alive))
        finally:
            for worker in self.workers.values():
                worker.frozen = True
                while worker.thread is not None and worker.thread.is_alive():
                    worker.turn.set()
                    worker.thread.join(0.01)

    @property
    def finished(self) -> bool:
        names = {unit.name for unit in GRAPH}
        return all(f"units/{name}/manifest.json" in self.store.objects for name in names)

    def start(self) -> None:
        name = f"worker-{len(self.workers)}"
        worker = self.workers[name] = Worker(name)
        self.held[name] = []
        worker.thread = threading.Thread(target=self._work, args=[worker], name=name, daemon=True)
        worker.thread.start()

    def step(self, worker: Worker) -> None:
        self.back.clear()
        worker.turn.set()
        assert self.back.wait(60)
        if worker.error is not None:
            raise worker.error

    def _work(self, worker: Worker) -> None:
        try:
            worker.turn.wait()
            worker.turn.clear()
            if not worker.frozen:
                self._serve(worker.name)
        except (Killed, Stopped):
            pass
        except BaseException as error:
            worker.error = error
        finally:
            worker.ended = True
            self.held.pop(worker.name, None)
            self.back.set()

    def _serve(self, name: str) -> None:
        run = self._part(name)
        while not self.finished:
            try:
                help_out(run, patience_seconds=1e9)
            except LostFile:  # Others were faster, and what was read is released.
                run.sizes.workspace.refresh()

    def _part(self, name: str) -> Run:
        workspace = Workspace(self.store, self.root / name, "a job")  # type: ignore[arg-type]
        reservations = SimpleNamespace(
            shared=True,
            reserve=lambda ready, keeping=None: self.reserve(name, ready, keeping),
            held=lambda: self.all_held(name),
        )
        follows = Following(workspace, reservations, self.safe_point)
        job = SimpleNamespace(
            place=lambda file: workspace.file(*file),
            following=follows,
            safe_point=self.safe_point,
            device=self.random.choice(self.devices),
        )
        sizes = SimpleNamespace(
            graph=GRAPH,
            workspace=workspace,
            predicted_seconds={unit.name: 1.0 for unit in GRAPH},
            of=lambda unit: (job, unit),
            first=SimpleNamespace(size="", transfers=Transfers()),
        )
        meter = SimpleNamespace(
            plan=lambda *given: None,
            begin=lambda unit: self.safe_point(),
            end=lambda unit: None,
            give_back=lambda unit: None,
            safe_point=self.safe_point,
            storing=lambda done: None,
        )
        memory = SimpleNamespace(
            take_host_peak=lambda: 0,
            take_device_peak=lambda: None,
            counting=contextlib.nullcontext,
        )
        storing: AtOnce[tuple[Stored, float]] = AtOnce()
        given: dict[str, Any] = {
            "sizes": sizes,
            "meter": meter,
            "memory": memory,
            "finished": lambda unit: self.done.append(unit.name),
        }
        return Run(
            **given,
            reservations=reservations,
            storing=storing,
            handing_on=AtOnce(),
            following=follows,
        )


def made_by(unit: Unit) -> list[str]:
    """Names of the files that others want of a unit."""
    wanted = {file for each in GRAPH for file in (*each.reads, *each.releases)}
    return sorted(file.name for file in wanted if file.unit == unit.name)


def passes_on(unit: Unit) -> list[str]:
    """The files that a unit hands on, in order."""
    names = [Capture(unit.index).chunk(chunk).name for chunk in CHUNKS]
    return [name for name in names if name in made_by(unit)] if unit.kind == "capture" else []


def contents(unit: Unit, device: str, read: Callable[[File], str]) -> Iterator[tuple[str, str]]:
    """(file, text) of all that a unit writes, each as soon as what is behind it was read.

    Args:
        unit: The unit.
        device: What computes; another one rounds differently.
        read: Returns a file's SHA-256.
    """
    behind = unit.name + device
    passing = passes_on(unit)
    for number, file in enumerate(unit.reads):
        behind = sha256_of_bytes(f"{behind} {read(file)}".encode())
        if unit.follows and number < len(passing):
            yield passing[number], behind
    for name in made_by(unit):
        if not unit.follows or name not in passing:
            yield name, f"{name} {behind}"


def fake_step(job: Any, unit: Unit, draft: Draft) -> None:
    """Write what follows from what is read and from the device; a capture a chunk at a time."""

    def read(file: File) -> str:
        job.safe_point()
        place = job.following.path if file.unit in unit.follows else job.place
        return sha256_of_bytes(place(file).read_bytes())

    for name, text in contents(unit, job.device, read):
        draft.path(name).write_text(text)
        if name in passes_on(unit):
            draft.hand_on(name)
    draft.values["device"] = job.device


def simulated(
    root: Path, seed: int, *, kills: int, most: int, devices: Sequence[str] = ("cpu",)
) -> World:
    """A run of all units by at most so many workers at a time, of which so many die."""
    world = World(root, Random(seed), kills=kills, most=most, devices=devices)
    clock = SimpleNamespace(monotonic=lambda: world.now, time=lambda: world.now, sleep=world.sleep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "time", clock)
        patch.setattr(following, "ASK_SECONDS", 0.2)  # Else few live as long as that.
        patch.setattr(runner, "time", clock)
        patch.setattr(runner, "return_free_memory", lambda: None)
        patch.setattr(runner, "STEPS", {unit.kind: fake_step for unit in GRAPH})
        world.run()
    return world


def digests(world: World, root: Path) -> dict[str, dict[str, str]]:
    """Of every unit's files, by the manifests that count."""
    workspace = Workspace(world.store, root / "look", "a job")  # type: ignore[arg-type]
    manifests = [workspace.manifest(unit.name) for unit in GRAPH]
    return {
        each.unit: {name: file.sha256 for name, file in each.files.items()}
        for each in manifests
        if each is not None
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("alone")
    world = simulated(root, 0, kills=0, most=1)
    assert sorted(world.done) == sorted(unit.name for unit in GRAPH)
    return digests(world, root)


@given(seed=st.integers(0, 2**32), kills=st.integers(0, 8), most=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_however_workers_come_and_die_the_bytes_are_those_of_one(
    tmp_path_factory: pytest.TempPathFactory,
    alone: dict[str, dict[str, str]],
    seed: int,
    kills: int,
    most: int,
) -> None:
    root = tmp_path_factory.mktemp("world")
    world = simulated(root, seed, kills=kills, most=most)
    assert digests(world, root) == alone


@given(seed=st.integers(0, 2**32), kills=st.integers(0, 8), most=st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_nothing_is_finished_on_other_bytes_than_its_predecessor_left(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kills: int, most: int
) -> None:
    """Though workers that round differently begin each other's units again."""
    root = tmp_path_factory.mktemp("world")
    world = simulated(root, seed, kills=kills, most=most, devices=("cpu", "cuda"))
    workspace = Workspace(world.store, root / "look", "a job")  # type: ignore[arg-type]
    left = digests(world, root)
    for unit in GRAPH:
        device = workspace.values(unit.name)["device"]
        made = contents(unit, device, lambda file: left[file.unit][file.name])
        assert left[unit.name] == {name: sha256_of_bytes(text.encode()) for name, text in made}
