"""A job may stop or fail anywhere and be repeated: the bytes are the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import (
    Stopped,
    StorageUnavailable,
    WorkspaceMismatch,
)
from strucprune_core.report.document import Report
from strucprune_core.run.progress import Progress
from strucprune_core.spec import JobSpec, ModelSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import (
    FlakyStore,
    StopAt,
    StopOnceFinished,
    checkpoint_of,
    files_of,
    run,
    tiny_spec,
)
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=3, intermediate=96)


class Attempts:
    """Runs a job with a stop signal until it is finished."""

    def __init__(self, spec: JobSpec, root: Path) -> None:
        self.spec, self.root = spec, root
        self.fractions: list[list[float]] = []

    def until_finished(self, checks: int) -> Report:
        """Stop each attempt at its n-th check, but for publishing, which starts anew each time."""
        for _ in range(100):
            seen: list[float] = []
            self.fractions.append(seen)
            try:
                return run(
                    self.spec,
                    self.root,
                    stop=None if (self.root / "out").exists() else StopAt(checks),
                    progress=lambda progress, seen=seen: seen.append(progress.fraction),  # type: ignore[misc]
                )
            except Stopped:
                assert not (self.root / "out/strucprune.json").exists()
                assert not list((self.root / "scratch").glob("draft-*"))
        pytest.fail("the attempts do not get anywhere")


@pytest.mark.parametrize("checks", [35, 42])
def test_stopping_again_and_again(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], checks: int
) -> None:
    # Every attempt gets a little further: no unit of this model asks 35 times.
    attempts = Attempts(spec, tmp_path)
    report = attempts.until_finished(checks)
    assert len(attempts.fractions) >= 3
    assert checkpoint_of(tmp_path / "out") == expected
    assert attempts.fractions[-1][-1] == 1.0
    starts = [seen[0] for seen in attempts.fractions if seen]
    assert starts == sorted(starts)  # what is finished stays finished
    assert report.perplexity is not None


@pytest.mark.parametrize("check", [1, 2, 4, 9, 14, 19, 29, 50, 70, 90])
def test_stopping_once_anywhere(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], check: int
) -> None:
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopAt(check))
    assert files_of(tmp_path / "out") == {}
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


def test_a_lost_scratch_directory_costs_nothing(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopAt(15))
    (tmp_path / "workspace").rename(tmp_path / "other")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "other").rename(elsewhere / "workspace")
    run(spec, elsewhere)
    assert checkpoint_of(tmp_path / "out") == expected


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", [1, 2, 7, 20, 33, 38])
def test_a_workspace_that_fails_at_some_write(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], write: int, after: bool
) -> None:
    from strucprune_core.pipeline import prune

    flaky = FlakyStore(tmp_path / "workspace", write, after=after)
    with pytest.raises(StorageUnavailable):
        prune(spec, workspace=flaky, scratch=tmp_path / "scratch")
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "unit", ["tokens", "capture.2", "curve.1", "solve.0", "solve.2", "assemble.0"]
)
def test_a_damaged_file_is_recomputed(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], unit: str
) -> None:
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopOnceFinished(tmp_path, unit))
    damaged = 0
    for path in sorted((tmp_path / "workspace/units" / unit).rglob("*")):
        if path.suffix in (".npy", ".safetensors"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            damaged += 1
    assert damaged
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


def test_the_workspace_of_another_job_is_refused(
    tmp_path: Path, spec: JobSpec, model: Path, text_file: Path
) -> None:
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopAt(5))
    others: list[dict[str, Any]] = [
        {"pruning": {"sparsity": 0.31}},
        {"calibration": {"seed": 1}},
        {"evaluation": None},
    ]
    for changes in others:
        with pytest.raises(WorkspaceMismatch):
            run(tiny_spec(model, text_file, tmp_path / "out", **changes), tmp_path)
    wider = make_tiny_llama(tmp_path / "model", layers=3, intermediate=100)
    with pytest.raises(WorkspaceMismatch):
        run(tiny_spec(wider, text_file, tmp_path / "out"), tmp_path)
    # What does not change the result may change.
    same = tiny_spec(model, text_file, tmp_path / "out", labels={"a": "b"})
    same = same.model_copy(
        update={"runtime": same.runtime.model_copy(update={"priority": "high", "max_attempts": 9})}
    )
    run(same, tmp_path)


def test_a_model_that_changed_under_its_name_is_noticed(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2, intermediate=64)
    spec = tiny_spec(model, text_file, tmp_path / "out")
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopAt(5))
    make_tiny_llama(model, layers=2, intermediate=72)
    with pytest.raises(WorkspaceMismatch):
        run(spec, tmp_path)


@pytest.mark.parametrize("overtaken_at", [0.0, 0.3, 0.8])
def test_a_process_that_was_overtaken_ends_well(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], overtaken_at: float
) -> None:
    # Two processes are on one job for a moment: a lease ran out, but its holder was only slow.
    # The other finishes and publishes while the slow one is in the middle of it.
    winner: list[Report] = []

    def overtake(progress: Progress) -> None:
        if progress.fraction >= overtaken_at and not winner:
            winner.append(run(spec, tmp_path))

    # A file that the other released is looked for again, and a second report is not made.
    report = run(spec, tmp_path, progress=overtake)
    assert report == winner[0]
    assert checkpoint_of(tmp_path / "out") == expected
    assert Report.model_validate_json((tmp_path / "out/report.json").read_bytes()) == report


@pytest.mark.parametrize("unit", ["assemble.0", "report"])
@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_a_file_lost_just_before_publishing_is_recomputed(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes], unit: str, damage: str
) -> None:
    output = FlakyStore(tmp_path / "out", 1)  # everything is computed; publishing fails
    others = {str(tmp_path / "out"): output}
    with pytest.raises(StorageUnavailable):
        run(spec, tmp_path, open_store=lambda uri: others.get(uri) or LocalStore(Path(uri)))
    for path in (tmp_path / "workspace/units" / unit).rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            if damage == "deleted":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-1] + b"?")
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


def test_other_weights_of_the_same_layout_are_another_job(
    tmp_path: Path, spec: JobSpec, model: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    spec = spec.model_copy(update={"model": ModelSpec(uri=str(copy))})
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopAt(9))
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WorkspaceMismatch):
        run(spec, tmp_path)
