"""A unit is stored on another machine while the next one is computed: what that may not break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from strucprune_core.errors import Stopped, StorageUnavailable
from strucprune_core.pipeline import prune
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import Report
from strucprune_core.run import progress_meter
from strucprune_core.run.background import WAIT_SECONDS
from strucprune_core.run.context import Job
from strucprune_core.run.progress import FinishedUnit, Progress, StopSignal
from strucprune_core.run.runner import CHAINED_KINDS
from strucprune_core.run.step_table import STEPS
from strucprune_core.run.workspace import Draft, Workspace
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Tick, ignore_bytes
from tests.core.jobs.tiny_job import RemoteStore, checkpoint_of, files_of
from tests.support.tiny_llama import make_tiny_llama

LAYERS = 3
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=LAYERS, intermediate=96)


class WatchedStore(RemoteStore):
    """A store on another machine that calls `before` with the unit and a tick of each upload."""

    _before: Callable[[str, Tick], None]

    def __init__(self, root: Path, before: Callable[[str, Tick], None]) -> None:
        super().__init__(root)
        object.__setattr__(self, "_before", before)  # the class is frozen

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        self._before(key.split("/")[1], tick)
        super().upload(key, path, tick)


@dataclass
class Runner:
    """Runs the job with a store whose uploads are watched, and its steps too."""

    spec: JobSpec
    root: Path
    done: list[FinishedUnit] = field(default_factory=list)

    def run(
        self,
        before: Callable[[str, Tick], None],
        stop: StopSignal | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Report:
        return prune(
            self.spec,
            workspace=WatchedStore(self.root / "workspace", before),
            scratch=self.root / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
            finished=self.done.append,
            stop=stop,
            progress=progress,
        )

    def is_finished(self, unit: str) -> bool:
        return (self.root / "workspace/units" / unit / "manifest.json").exists()

    def checkpoint(self) -> dict[str, bytes]:
        return checkpoint_of(self.root / "out")

    def nothing_is_left_of(self, unit: str) -> bool:
        """Neither in the store nor here."""
        places = [self.root / "workspace/units" / unit, self.root / "scratch/files/units" / unit]
        drafts = list((self.root / "scratch/files").glob("draft-*"))
        return not drafts and not any(files_of(place) for place in places)


@pytest.fixture
def runner(spec: JobSpec, tmp_path: Path) -> Runner:
    return Runner(spec, tmp_path)


def before_each_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[Job, Unit], None]) -> None:
    def looked_at(kind: str, job: Job, unit: Unit, draft: Draft) -> None:
        look(job, unit)
        steps[kind](job, unit, draft)

    steps = dict(STEPS)
    for kind in steps:
        monkeypatch.setitem(STEPS, kind, partial(looked_at, kind))


def test_the_next_unit_is_computed_while_one_is_stored(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "curve.0":
            assert not runner.is_finished("capture.1")
            begun.set()

    def wait_for_the_next(unit: str, tick: Tick) -> None:
        if unit == "capture.1":
            assert begun.wait(PATIENCE_SECONDS)

    before_each_step(monkeypatch, look)
    runner.run(wait_for_the_next)
    assert runner.checkpoint() == expected
    order = [unit.name for unit in runner.done]
    assert order.index("capture.1") < order.index("curve.0") < order.index("capture.2")
    assert len(order) == len(set(order))


def test_units_are_stored_in_order_and_one_at_a_time(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest is there before those of the units that it builds on."""
    after: dict[str, tuple[str, ...]] = {}
    early: list[str] = []
    storing: list[str] = []

    def look(job: Job, unit: Unit) -> None:
        unfinished = [name for name in unit.after if not runner.is_finished(name)]
        if unfinished:
            early.append(unit.name)
            assert {unit.kind, *(name.split(".")[0] for name in unfinished)} <= CHAINED_KINDS
        after[unit.name] = unit.after

    def slow(unit: str, tick: Tick) -> None:
        assert [name for name in after[unit] if not runner.is_finished(name)] == []
        storing.append(unit)
        assert [name for name in set(storing) if not runner.is_finished(name)] == [unit]
        time.sleep(0.03)

    before_each_step(monkeypatch, look)
    runner.run(slow)
    assert runner.checkpoint() == expected
    assert len(after) == len(set(runner.done)) - 1  # All but publishing were done once.
    assert early


def test_a_chain_goes_on_from_this_machine_s_files(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next layer is captured while the one before is being stored."""
    begun = threading.Event()

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "capture.1":
            assert not runner.is_finished("capture.0")
            begun.set()

    def wait_for_the_next(unit: str, tick: Tick) -> None:
        if unit == "capture.0":
            assert begun.wait(PATIENCE_SECONDS)

    before_each_step(monkeypatch, look)
    runner.run(wait_for_the_next)
    assert runner.checkpoint() == expected


def test_nothing_is_stored_behind_a_unit_that_could_not_be(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "capture.2":  # So `capture.1` was computed, and waits.
            waits.set()
            while True:  # A step that has only the failure to end it.
                job.safe_point()
                time.sleep(0.001)

    def fail(unit: str, tick: Tick) -> None:
        if unit == "capture.0":
            assert waits.wait(PATIENCE_SECONDS)
            raise StorageUnavailable("the network went away")

    before_each_step(monkeypatch, look)
    with pytest.raises(StorageUnavailable, match="went away") as caught:
        runner.run(fail)
    assert caught.value.layer == 0
    for unit in ("capture.0", "capture.1", "capture.2"):
        assert not runner.is_finished(unit)
        assert runner.nothing_is_left_of(unit)
    monkeypatch.undo()
    runner.run(lambda name, tick: None)
    assert runner.checkpoint() == expected


def test_what_builds_on_other_bytes_is_done_again(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, of a device that rounds differently, has stored the unit first."""
    begun: list[str] = []
    has_begun, is_slower = threading.Event(), threading.Event()
    workspaces: list[Workspace] = []

    def look(job: Job, unit: Unit) -> None:
        begun.append(unit.name)
        assert isinstance(job.workspace, Workspace)
        workspaces.append(job.workspace)
        if unit.name == "capture.1":
            has_begun.set()

    def be_slower_than_another(unit: str, tick: Tick) -> None:
        if unit != "capture.0" or is_slower.is_set():
            return
        is_slower.set()
        assert has_begun.wait(PATIENCE_SECONDS)
        mine = workspaces[0].file(unit, "hidden.0-7.npy")
        others = Draft(tmp_path / "others", workspaces[0].values(unit))
        shutil.copytree(mine.parent, others.directory)
        np.save(others.path(mine.name), np.load(mine) * np.float32(1.0 + 2.0**-20))
        workspaces[0].store(unit, others, seconds=1, host_peak_bytes=1, device_peak_bytes=None)

    before_each_step(monkeypatch, look)
    runner.run(be_slower_than_another)
    assert begun.count("capture.0") == 1
    assert begun.count("capture.1") == 2
    manifest = json.loads((tmp_path / "workspace/units/capture.0/manifest.json").read_text())
    assert manifest["host_peak_bytes"] == 1


@pytest.mark.parametrize("unit", ["tokens", "capture.1", "solve.0", "assemble.0"])
def test_an_upload_that_fails_ends_the_next_unit_at_a_safe_point(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    phases = {"tokens": "inspecting", "capture.1": "calibrating", "assemble.0": "uploading"}
    failed = threading.Event()
    computed: list[str] = []

    def fail(name: str, tick: Tick) -> None:
        if name == unit:
            failed.set()
            raise StorageUnavailable("the network went away")

    def look(job: Job, next_one: Unit) -> None:
        computed.append(next_one.name)
        while failed.is_set():  # a step that has only this to end it
            job.tick(0, 1)
            time.sleep(0.001)

    before_each_step(monkeypatch, look)
    with pytest.raises(StorageUnavailable, match="went away") as caught:
        runner.run(fail)
    error = caught.value
    assert (error.field, error.phase) == ("workspace", phases.get(unit, "solving"))
    assert error.layer == ({"capture.1": 1, "solve.0": 0}.get(unit))
    assert runner.nothing_is_left_of(unit)
    assert computed[-1] == unit or not runner.is_finished(computed[-1])
    failed.clear()
    runner.run(lambda name, tick: None)
    assert runner.checkpoint() == expected


def test_a_stop_lets_the_unit_that_is_being_stored_finish(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stopped = threading.Event(), threading.Event()
    told: list[float] = []

    class StopWhileStoring:
        def check(self) -> None:
            if begun.is_set():
                stopped.set()
                raise Stopped("asked to")

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "solve.1":
            begun.set()
            job.tick(0, 1)

    def slow(unit: str, tick: Tick) -> None:
        if unit == "solve.0":
            assert stopped.wait(PATIENCE_SECONDS)
            time.sleep(2 * WAIT_SECONDS)
            tick(0)

    before_each_step(monkeypatch, look)
    with pytest.raises(Stopped, match="asked to"):
        runner.run(slow, stop=StopWhileStoring(), progress=lambda at: told.append(at.fraction))
    assert runner.is_finished("solve.0")
    assert runner.done[-1].name == "solve.0"
    # What it was the last to need is gone.
    assert not list((runner.root / "workspace/units/capture.0").rglob("grams.safetensors"))
    assert runner.nothing_is_left_of("solve.1")
    assert told == sorted(told)
    begun.clear()
    runner.run(lambda name, tick: None)
    assert runner.checkpoint() == expected


def test_a_second_interrupt_waits_for_nothing(
    runner: Runner, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    abandoned: list[str] = []

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "solve.1":
            begun.set()
            raise KeyboardInterrupt

    def endless(unit: str, tick: Tick) -> None:
        if unit == "solve.0":
            assert begun.wait(PATIENCE_SECONDS)
            try:
                while True:
                    tick(0)
                    time.sleep(0.01)
            except Stopped:
                abandoned.append(unit)
                raise

    before_each_step(monkeypatch, look)
    with pytest.raises(KeyboardInterrupt):
        runner.run(endless)
    assert abandoned == ["solve.0"]
    assert runner.nothing_is_left_of("solve.0")
    begun.clear()
    monkeypatch.undo()
    runner.run(lambda name, tick: None)
    assert runner.checkpoint() == expected


def test_a_second_interrupt_while_the_upload_is_waited_for_waits_no_longer(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_meter, "ALIVE_SECONDS", -1.0)
    stopped = threading.Event()

    def look(job: Job, unit: Unit) -> None:
        if unit.name == "solve.1":
            stopped.set()
            raise Stopped("the first one")

    def endless(unit: str, tick: Tick) -> None:
        if unit == "solve.0":
            for done in range(10**9):
                tick(done)
                time.sleep(0.01)

    def press(progress: Progress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    before_each_step(monkeypatch, look)
    with pytest.raises(KeyboardInterrupt):
        runner.run(endless, progress=press)
    assert runner.nothing_is_left_of("solve.0")


_DYING = """
import json, os, signal, sys
from pathlib import Path
from strucprune_core.pipeline import prune
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import RemoteStore

class DyingStore(RemoteStore):
    def upload(self, key, path, tick=lambda done: None):
        if key.split("/")[1] != job["dies_at"]:
            return super().upload(key, path, tick)
        if job["after"]:
            super().upload(key, path, tick)
        os.kill(os.getpid(), signal.SIGKILL)

# Torch is imported and has no thread yet: a child takes over at once.
import strucprune_core.evaluation.transformers_reference
statuses = []
for job in json.load(sys.stdin):
    pid = os.fork()
    if not pid:
        prune(
            JobSpec.model_validate(job["spec"]),
            workspace=DyingStore(Path(job["root"]) / "workspace"),
            scratch=Path(job["root"]) / job["scratch"],
        )
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.wait4(pid, 0)[1]))
print(json.dumps(statuses))
"""


def test_killed_while_a_unit_is_stored(
    runner: Runner, expected: dict[str, bytes], tmp_path: Path
) -> None:
    units = ["capture.0", "capture.1", "curve.0", "solve.0", "solve.1", "assemble.0"]
    attempts = [(unit, after) for unit in units for after in (False, True)]
    job = {"spec": runner.spec.model_dump(mode="json"), "root": str(tmp_path)}
    jobs = [
        {**job, "dies_at": unit, "after": after, "scratch": f"scratch-{number}"}
        for number, (unit, after) in enumerate([*attempts, ("nowhere", False)])
    ]
    done = subprocess.run(
        [sys.executable, "-c", _DYING],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [-signal.SIGKILL] * len(attempts) + [0], done.stderr
    assert runner.checkpoint() == expected
