"""Several processes serve one job: every unit is done once, and the bytes are one process's."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import NumericalFailure, Stopped, StorageUnavailable
from strucprune_core.pipeline import assist, prune
from strucprune_core.plan import graph as units
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import Report
from strucprune_core.run import following
from strucprune_core.run.artifacts import Capture, File
from strucprune_core.run.context import Job
from strucprune_core.run.layer_updates import LayerUpdate, merged
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.run.reservations import ALONE, UnitReservations
from strucprune_core.run.step_table import STEPS, Step
from strucprune_core.run.workspace import Draft, LostFile
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import RemoteStore, checkpoint_of, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=LAYERS, intermediate=96)


@dataclass
class Board:
    """Who holds what, for runners of one process; `gone` runners hold nothing and get nothing."""

    held: dict[str, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, who: str, ready: Sequence[str], keeping: str | None) -> str | None:
        with self.lock:
            self.asked[who] += 1
            if who in self.gone:
                raise Stopped("no place any more")
            assert keeping is None or keeping in self.held[who]
            self.held[who] = [] if keeping is None else [keeping]
            taken = {unit for units in self.held.values() for unit in units}
            free = [unit for unit in ready if unit not in taken]
            self.held[who] += free[:1]
            return free[0] if free else None

    def all_held(self, who: str) -> frozenset[str]:
        with self.lock:
            if who in self.gone:
                raise Stopped("no place any more")
            return frozenset(unit for units in self.held.values() for unit in units)

    def lapse(self, who: str) -> None:
        with self.lock:
            self.held.pop(who, None)
            self.gone.add(who)


@dataclass
class Reservations:
    """One runner's reservations on the board."""

    board: Board
    who: str
    shared: bool = True

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        return self.board.reserve(self.who, ready, keeping)

    def held(self) -> frozenset[str]:
        return self.board.all_held(self.who)


@dataclass
class Crew:
    """Runners over one workspace, and what they did: (who, unit)."""

    spec: JobSpec
    root: Path
    pool: ThreadPoolExecutor
    board: Board = field(default_factory=Board)
    done: list[tuple[str, str]] = field(default_factory=list)
    updates: list[LayerUpdate] = field(default_factory=list)

    def lead(self, reservations: UnitReservations | None = None) -> Future[Report]:
        return self.pool.submit(
            lambda: prune(
                self.spec,
                workspace=RemoteStore(self.root / "workspace"),
                scratch=self.root / "leader",
                open_store=lambda uri: LocalStore(Path(uri)),
                finished=self._note("leader"),
                reservations=reservations or Reservations(self.board, "leader"),
                layers=self.updates.extend,
            )
        )

    def help(
        self,
        who: str,
        *,
        patience_seconds: float = 60.0,
        reservations: UnitReservations | None = None,
    ) -> Future[None]:
        return self.pool.submit(
            lambda: assist(
                self.spec,
                workspace=RemoteStore(self.root / "workspace"),
                scratch=self.root / who,
                open_store=lambda uri: LocalStore(Path(uri)),
                finished=self._note(who),
                reservations=reservations or Reservations(self.board, who),
                patience_seconds=patience_seconds,
            )
        )

    def by(self, who: str) -> set[str]:
        return {unit for each, unit in self.done if each == who}

    def times(self) -> Counter[str]:
        return Counter(unit for _, unit in self.done)

    def _note(self, who: str) -> Callable[[FinishedUnit], None]:
        return lambda unit: self.done.append((who, unit.name))


@pytest.fixture
def crew(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    # One step at a time: the reload check makes transformers build its model on the meta device,
    # which for that moment is so for every thread of the process. Layers that follow one another
    # are passed side by side, when no check can run.
    turn = threading.Lock()

    def in_turn(step: Step, job: Job, unit: Unit, draft: Draft) -> None:
        with turn:
            step(job, unit, draft)

    for kind, step in STEPS.items():
        if kind != "capture":
            monkeypatch.setitem(STEPS, kind, partial(in_turn, step))
    with ThreadPoolExecutor() as pool:
        yield Crew(spec, tmp_path, pool)


class Gate:
    """Holds up the first runner of a unit until it is opened. Others pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        kind = name.partition(".")[0]
        step = STEPS[kind]

        def held_up(job: Job, unit: Unit, draft: Draft) -> None:
            if unit.name == name and not self.reached.is_set():
                self.reached.set()
                assert self.opened.wait(60)
            step(job, unit, draft)

        monkeypatch.setitem(STEPS, kind, held_up)


def all_units(crew: Crew) -> set[str]:
    names = {f"{kind}.{layer}" for kind in ("capture", "curve", "solve") for layer in range(LAYERS)}
    others = {"tokens", "embed", "price.1", "probe.0", "allocate", "assemble.0", "verify", "report"}
    others |= {"model_check", "tokens.evaluation", "weights"}
    return names | others | {"evaluate.dense", "evaluate.pruned", "publish"}


def test_alone_takes_what_comes_first() -> None:
    assert ALONE.reserve(["a", "b"]) == "a"
    assert ALONE.reserve([]) is None


def test_four_share_the_units_of_one_job(
    crew: Crew, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The leader must wait for all: it holds the first evaluation until others did the calibration.
    gate = Gate(monkeypatch, "evaluate.dense")
    leader = crew.lead()
    assert gate.reached.wait(60)
    names = ("one", "two", "three")
    helpers = [crew.help(name) for name in names]
    wait_for(lambda: crew.times()["price.1"])
    gate.opened.set()
    report = leader.result(60)
    assert checkpoint_of(crew.root / "out") == expected
    # Whoever did the units, the leader has sent the updates.
    known = [
        (one.energy, one.width_after, one.reconstruction_error) for one in merged(crew.updates)
    ]
    assert known == [
        (one.energy, one.width_after, one.reconstruction_error) for one in report.layers
    ]
    for helper in helpers:
        helper.result(60)  # they end when the job does
    assert crew.times() == dict.fromkeys(all_units(crew), 1)
    assert {"publish", "evaluate.dense"} <= crew.by("leader")
    assert {"embed", "capture.0", "probe.0"} <= set().union(*map(crew.by, names))


def test_a_zombie_finishes_late_and_does_no_harm(
    crew: Crew, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = Gate(monkeypatch, "evaluate.dense")
    solve = Gate(monkeypatch, "solve.1")
    leader = crew.lead()
    assert dense.reached.wait(60)
    zombie = crew.help("zombie")
    assert solve.reached.wait(60)
    crew.board.lapse("zombie")
    dense.opened.set()
    leader.result(60)
    assert "solve.1" in crew.by("leader")
    # By now what it reads is released, and its unit has another's manifest.
    manifest = crew.root / "workspace/units/solve.1/manifest.json"
    before = manifest.read_bytes()
    solve.opened.set()
    with pytest.raises(Stopped):
        zombie.result(60)
    assert manifest.read_bytes() == before
    assert checkpoint_of(crew.root / "out") == expected


def test_a_helper_that_dies_leaves_its_unit_to_others(
    crew: Crew, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, deaths = STEPS["curve"], list[str]()

    def die_once(job: Job, unit: Unit, draft: Draft) -> None:
        if not deaths:
            deaths.append(unit.name)
            raise StorageUnavailable("no network here")
        curve(job, unit, draft)

    monkeypatch.setitem(STEPS, "curve", die_once)
    dense = Gate(monkeypatch, "evaluate.dense")
    leader = crew.lead()
    assert dense.reached.wait(60)
    with pytest.raises(StorageUnavailable):
        crew.help("mortal").result(60)
    dense.opened.set()
    # Nobody knows of its end yet, so all that is ready in the end is its unit.
    wait_for(lambda: crew.board.asked["leader"] > 10)
    assert not leader.done()
    crew.board.lapse("mortal")
    leader.result(60)
    assert deaths[0] in crew.by("leader")
    assert crew.times() == dict.fromkeys(all_units(crew), 1)
    assert checkpoint_of(crew.root / "out") == expected


@pytest.mark.parametrize("others", [0, 1], ids=["nobody else", "another helper"])
def test_a_follower_is_ahead_when_its_predecessor_dies(
    crew: Crew, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """It goes on with the chunks of whoever does that layer next; if need be it does so itself."""
    monkeypatch.setattr(following, "ASK_SECONDS", 0.1)
    capture, path = STEPS["capture"], following.Following.path
    followed = threading.Event()
    first = Capture(0).unit

    def die_once(job: Job, unit: Unit, draft: Draft) -> None:
        if unit.name == first and not followed.is_set():
            hand_on = draft.hand_on

            def and_die(name: str) -> None:
                hand_on(name)
                assert followed.wait(60)
                raise StorageUnavailable("no network here")

            draft.hand_on = and_die
        capture(job, unit, draft)

    def noted(self: following.Following, file: File) -> Path:
        found = path(self, file)
        if file.unit == first and not crew.times()[first]:
            followed.set()
        return found

    monkeypatch.setitem(STEPS, "capture", die_once)
    monkeypatch.setattr(following.Following, "path", noted)
    dense = Gate(monkeypatch, "evaluate.dense")
    leader = crew.lead()
    assert dense.reached.wait(60)
    mortal = crew.help("mortal")
    wait_for(lambda: first in crew.board.held.get("mortal", []))
    heir = crew.help("heir")
    with pytest.raises(StorageUnavailable):
        mortal.result(60)
    assert Capture(1).unit in crew.board.held["heir"]
    crew.board.lapse("mortal")
    helpers = [heir, *(crew.help(f"other-{number}") for number in range(others))]
    wait_for(lambda: crew.times()[Capture(1).unit])
    dense.opened.set()
    leader.result(60)
    for helper in helpers:
        helper.result(60)
    assert crew.times() == dict.fromkeys(all_units(crew), 1)
    assert checkpoint_of(crew.root / "out") == expected
    # Nothing is left of hidden states that were handed on, by whichever attempt.
    left = [*crew.root.glob("workspace/units/capture.*/*/hidden.*-*")]
    assert left == []


def test_a_unit_that_always_fails_fails_the_leader(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job, unit: Unit, draft: Draft) -> None:
        raise NumericalFailure("singular")

    monkeypatch.setitem(STEPS, "curve", fail)
    dense = Gate(monkeypatch, "evaluate.dense")
    leader = crew.lead()
    assert dense.reached.wait(60)
    with pytest.raises(NumericalFailure):
        crew.help("helper").result(60)
    crew.board.lapse("helper")
    dense.opened.set()
    with pytest.raises(NumericalFailure) as failure:
        leader.result(60)
    assert (failure.value.phase, failure.value.layer) == ("allocating", 0)


class Forgotten:
    """Reservations in a ledger that has lost its data: whatever is due is granted, to everybody."""

    shared = True

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        return ready[0] if ready else None

    def held(self) -> frozenset[str]:
        return frozenset()


def test_without_any_reservations_work_is_done_twice_and_the_bytes_are_the_same(
    crew: Crew, expected: dict[str, bytes]
) -> None:
    runners = [
        crew.help(who, reservations=Forgotten(), patience_seconds=1.0) for who in ("one", "two")
    ]
    crew.lead(Forgotten()).result(60)
    assert checkpoint_of(crew.root / "out") == expected
    for runner in runners:
        # Files that it needs may be released by those who are ahead of it.
        assert runner.exception(60) is None or isinstance(runner.exception(), LostFile)


def test_a_helper_without_work_leaves(crew: Crew) -> None:
    crew.board.held["leader"] = ["model_check"]
    crew.help("idle", patience_seconds=0.3).result(60)
    assert crew.done == []
    assert crew.board.asked["idle"] > 1


def test_lost_files_are_the_leaders_business(crew: Crew, expected: dict[str, bytes]) -> None:
    crew.board.held["nobody"] = ["evaluate.dense"]
    crew.help("first", patience_seconds=0.3).result(60)
    assert "price.1" in crew.by("first")
    crew.board.held.clear()
    for path in (crew.root / "workspace/units/capture.1").rglob("grams.safetensors"):
        path.unlink()
    for path in (crew.root / "workspace/units/solve.1").rglob("*"):
        path.unlink(missing_ok=True) if path.is_file() else None
    crew.done.clear()
    crew.help("second", patience_seconds=0.3).result(60)
    assert "evaluate.dense" in crew.by("second")
    assert not {"capture.1", "solve.1"} & set(crew.times())
    crew.lead().result(60)
    assert {"capture.1", "solve.1"} <= crew.by("leader")
    assert checkpoint_of(crew.root / "out") == expected


def test_a_stop_is_heard_while_waiting_for_others(spec: JobSpec, tmp_path: Path) -> None:
    board = Board(held={"other": ["model_check"]})

    class StopOnceWaiting:
        def check(self) -> None:
            if board.asked["leader"]:
                raise Stopped("asked to")

    with pytest.raises(Stopped):
        prune(
            spec,
            workspace=LocalStore(tmp_path / "workspace"),
            scratch=tmp_path / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
            stop=StopOnceWaiting(),
            reservations=Reservations(board, "leader"),
        )


def test_units_of_others_are_noticed_though_what_they_read_is_released(crew: Crew) -> None:
    asked, over = threading.Event(), threading.Event()

    class Late(Reservations):
        def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
            asked.set()
            assert over.wait(60)
            return None

    late = crew.help("late", reservations=Late(crew.board, "late"))
    assert asked.wait(60)
    crew.lead(ALONE).result(60)
    over.set()
    late.result(50)  # and not when its patience is over
    assert crew.by("late") == set()


class LastFirst:
    """Takes what is ready in the opposite order."""

    shared = False

    def __init__(self) -> None:
        self.taken: list[str] = []

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        self.taken += ready[-1:]
        return ready[-1] if ready else None

    def held(self) -> None:
        return None


@pytest.mark.parametrize(
    "pruning",
    [
        {
            "structures": ["ffn_channels", "kv_groups"],
            "energy": "gradient",
            "recover": {"steps": 1},
        },
        {"rounds": 2, "distill": {"steps": 2}, "exports": ["block_configs"]},
    ],
    ids=["gradient-recover", "rounds-distill-exports"],
)
def test_any_order_that_the_graph_allows_gives_the_same_bytes(
    tmp_path: Path,
    model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruning: dict[str, Any],
) -> None:
    monkeypatch.setattr(units, "PROBE_GROUP_LAYERS", 1)
    monkeypatch.setattr(units, "DISTILL_UNIT_STEPS", 1)
    results = []
    last_first = LastFirst()
    orders: list[tuple[str, UnitReservations, type[LocalStore]]] = [
        ("first", ALONE, LocalStore),
        ("last", last_first, LocalStore),
        ("stored-beside", LastFirst(), RemoteStore),
    ]
    for name, reservations, store in orders:
        root = tmp_path / name
        spec = tiny_spec(model, text_file, root / "out", pruning=pruning)
        prune(
            spec,
            workspace=store(root / "workspace"),
            scratch=root / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
            reservations=reservations,
        )
        results.append(checkpoint_of(root / "out"))
    assert results[0] == results[1] == results[2]
    assert last_first.taken.index("solve.1") < last_first.taken.index("solve.0")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
