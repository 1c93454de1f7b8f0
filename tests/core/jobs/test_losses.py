"""Whatever one object of a workspace comes to, the job ends, at once, with the same bytes."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import OutputNotEmpty, Stopped, StorageUnavailable
from strucprune_core.plan import graph as units
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import Report
from strucprune_core.run import shards
from strucprune_core.run.context import Job
from strucprune_core.run.progress import Phase, Progress
from strucprune_core.run.step_table import STEPS, Step
from strucprune_core.run.workspace import Draft, Workspace
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Store
from tests.core.jobs.tiny_job import (
    FlakyStore,
    RemoteStore,
    StopAt,
    checkpoint_of,
    files_of,
    run,
    tiny_spec,
)
from tests.support.tiny_llama import make_tiny_llama

# Where the job is interrupted: at the n-th safe point, or at the n-th write to its output.
STOPS = (5, 9, 14, 19, 23)
WRITES = (1, 3)
POINTS = [f"stop {check}" for check in STOPS] + [f"write {write}" for write in WRITES]
DAMAGES = ("deleted", "changed", "truncated", "emptied")
CASES_PER_POINT = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=2, intermediate=64)


def failing_at(out: Path, write: int, uri: str) -> Store:
    """Opens stores, of which the output fails at its n-th write."""
    return FlakyStore(out, write) if uri == str(out) else LocalStore(Path(uri))


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, model: Path, text_file: Path
) -> dict[str, Path]:
    """Workspaces (and outputs) of the job, interrupted at each point."""
    roots: dict[str, Path] = {}
    for point in POINTS:
        root = roots[point] = tmp_path_factory.mktemp(point.replace(" ", "-"))
        spec = tiny_spec(model, text_file, root / "out")
        how, number = point.split()
        if how == "stop":
            with pytest.raises(Stopped):
                run(spec, root, stop=StopAt(int(number)))
            assert not (root / "out").exists()
        else:
            with pytest.raises(StorageUnavailable):
                run(spec, root, open_store=partial(failing_at, root / "out", int(number)))
    return roots


def copy_of(source: Path, target: Path) -> Path:
    for name in ("workspace", "out"):
        if (source / name).exists():
            shutil.copytree(source / name, target / name)
    return target


def damage(path: Path, how: str, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "changed" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"")


@pytest.mark.parametrize("point", POINTS)
def test_any_object_may_be_lost_at_any_point(
    tmp_path: Path,
    interrupted: dict[str, Path],
    model: Path,
    text_file: Path,
    expected: dict[str, bytes],
    point: str,
) -> None:
    draw = random.Random(point)
    objects = sorted(files_of(interrupted[point] / "workspace"))
    # Late objects matter most: everything else is already in them.
    always = [name for name in objects if "report" in name or name.count("/") == 0]
    cases = draw.sample(objects, min(CASES_PER_POINT, len(objects))) + always
    for number, name in enumerate(dict.fromkeys(cases)):
        root = copy_of(interrupted[point], tmp_path / str(number))
        how = draw.choice(DAMAGES)
        damage(root / "workspace" / name, how, draw)
        store = draw.choice([LocalStore, RemoteStore])
        report = run(tiny_spec(model, text_file, root / "out"), root, store=store)
        assert checkpoint_of(root / "out") == expected, (name, how, store)
        published = (root / "out/report.json").read_bytes()
        assert Report.model_validate_json(published) == report


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation": None, "pruning": {"allocation": "uniform"}},
        {"pruning": {"recover": {"steps": 2, "mode": "sequential"}}},
        {"pruning": {"recover": {"steps": 2, "mode": "parallel"}}},
        {"pruning": {"distill": {"steps": 12}}},
        {"pruning": {"recover": {"steps": 2}, "distill": {"steps": 2}}},
        {"pruning": {"allocation": "softmax", "energy": "forward", "solver": "admm"}},
        {"pruning": {"exports": ["gguf", "block_configs"]}},
        {"pruning": {"energy": "gradient"}},
        {"pruning": {"structures": ["ffn_channels", "kv_groups"], "rounds": 3}},
    ],
    ids=str,
)
def test_units_read_what_they_say(
    tmp_path: Path,
    model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    # What a unit reads and does not name would not be recomputed for it.
    monkeypatch.setattr(units, "PROBE_GROUP_LAYERS", 1)  # what one group leaves for another counts
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 2**15)  # files that hold nothing of some layers
    open_file, read = Workspace.file, set[tuple[str, str]]()

    def opened(workspace: Workspace, unit: str, name: str) -> Path:
        read.add((unit, name))
        return open_file(workspace, unit, name)

    def checked(step: Step, of: Job, unit: Unit, draft: Draft) -> None:
        read.clear()
        step(of, unit, draft)
        assert read == set(unit.reads), unit.name

    monkeypatch.setattr(Workspace, "file", opened)
    for kind, step in STEPS.items():
        monkeypatch.setitem(STEPS, kind, partial(checked, step))
    run(tiny_spec(model, text_file, tmp_path / "out", **changes), tmp_path)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["tokens/*/calibration.npy", "capture.1/*/grams.safetensors"])
def test_a_file_lost_while_the_job_runs(
    tmp_path: Path, model: Path, text_file: Path, expected: dict[str, bytes], how: str, file: str
) -> None:
    fractions: list[float] = []
    lost: list[Path] = []

    def lose(progress: Progress) -> None:
        fractions.append(progress.fraction)
        found = list((tmp_path / "workspace/units").glob(file))
        if found and not lost:
            lost.append(found[0])
            damage(found[0], how, random.Random(0))

    run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path, progress=lose)
    assert lost
    assert checkpoint_of(tmp_path / "out") == expected
    assert fractions == sorted(fractions)


def test_a_store_that_loses_everything_ends_the_run(
    tmp_path: Path, model: Path, text_file: Path
) -> None:
    losses: list[Path] = []

    def lose(progress: Progress) -> None:
        for path in (tmp_path / "workspace/units").glob("capture.0/*/grams.safetensors"):
            path.unlink()
            losses.append(path)

    with pytest.raises(StorageUnavailable, match="is gone from the workspace") as caught:
        run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path, progress=lose)
    assert 1 < len(losses) < 10
    assert caught.value.retryable
    assert files_of(tmp_path / "out") == {}


def test_units_of_another_job_are_not_taken_over(
    tmp_path: Path, model: Path, text_file: Path, expected: dict[str, bytes]
) -> None:
    other = tiny_spec(model, text_file, tmp_path / "out", calibration={"seed": 1})
    with pytest.raises(Stopped):
        run(other, tmp_path, stop=StopAt(20))
    (tmp_path / "workspace/job.json").unlink()  # nothing says any more whose units these are
    run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


def test_a_model_that_changes_while_the_job_runs_is_not_published(
    tmp_path: Path, model: Path, text_file: Path
) -> None:
    from strucprune_core.errors import InvalidCheckpoint

    copy = tmp_path / "model"
    shutil.copytree(model, copy)

    def change(progress: Progress) -> None:
        if progress.phase == Phase.SOLVING:
            weights = copy / "model.safetensors"
            weights.write_bytes(weights.read_bytes())  # the same bytes, but who knows

    with pytest.raises(InvalidCheckpoint, match="changed while the job ran") as caught:
        run(tiny_spec(copy, text_file, tmp_path / "out"), tmp_path, progress=change)
    assert caught.value.field == "model.uri"
    assert files_of(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_side_file_that_changes_before_publishing_is_not_published(
    tmp_path: Path, model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from strucprune_core.errors import InvalidCheckpoint

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / name).write_bytes((copy / name).read_bytes() if (copy / name).exists() else b"{}")
    report = STEPS["report"]

    def report_and_change(*arguments: object) -> None:
        report(*arguments)  # type: ignore[arg-type]
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")

    monkeypatch.setitem(STEPS, "report", report_and_change)
    with pytest.raises(InvalidCheckpoint, match="changed"):
        run(tiny_spec(copy, text_file, tmp_path / "out"), tmp_path)
    assert files_of(tmp_path / "out") == {}


def test_publishing_may_be_stopped_anywhere(
    tmp_path: Path, model: Path, text_file: Path, expected: dict[str, bytes]
) -> None:
    spec = tiny_spec(model, text_file, tmp_path / "out")

    class StopWhilePublishing:
        """Fires at the n-th check after the output was claimed."""

        def __init__(self, number: int) -> None:
            self.left = number

        def check(self) -> None:
            if (tmp_path / "out/report.json").exists():
                self.left -= 1
                if self.left == 0:
                    raise Stopped("asked to")

    stops = 0
    while True:
        try:
            report = run(spec, tmp_path, stop=StopWhilePublishing(stops + 1))
            break
        except Stopped:
            stops += 1
            assert not (tmp_path / "out/strucprune.json").exists()
    assert stops > len(expected)  # before each file, and while the large one is written
    assert checkpoint_of(tmp_path / "out") == expected
    assert Report.model_validate_json((tmp_path / "out/report.json").read_bytes()) == report
    with pytest.raises(OutputNotEmpty):  # it was claimed by that workspace and no other
        run(spec, tmp_path / "elsewhere")


def test_progress_moves_while_the_result_is_published(
    tmp_path: Path, model: Path, text_file: Path
) -> None:
    seen: list[Progress] = []
    run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path, progress=seen.append)
    publishing = [progress for progress in seen if 0.99 < progress.fraction < 1.0]
    assert len({progress.fraction for progress in publishing}) > 3
    assert {progress.phase for progress in publishing} == {Phase.COMMITTING}
