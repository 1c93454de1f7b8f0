"""Speed of a job's models: measured in turns, reported with its spread, left out where it must be.

No test compares times: a busy machine makes any of them wrong.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from strucprune_core.evaluation import speed as measuring
from strucprune_core.pipeline import run_job
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.speed import ROUNDS
from strucprune_core.report.document import Report
from strucprune_core.report.sizes import SizesReport
from strucprune_core.run.steps import speed as step
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, RemoteStore, checkpoint_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

SPEED = {**EASY, "speed": True}


def job(model: Path, text: Path, output: Path, **changes: Any) -> JobSpec:
    return tiny_spec(model, text, output, **{"evaluation": SPEED, **changes})


@pytest.fixture(scope="module")
def measured(
    tiny_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Path]:
    root = tmp_path_factory.mktemp("speed")
    return run(job(tiny_model, text_file, root / "out"), root), root


def test_the_figures_are_of_the_recorded_runs(measured: tuple[Report, Path]) -> None:
    found = measured[0].speed
    assert found is not None
    assert found.runtime.startswith("transformers ")
    assert (found.dtype, found.device) == ("float32", "cpu")
    assert found.threads == torch.get_num_threads()
    assert (found.prompt_tokens, found.new_tokens) == (32, 32)
    assert len(found.runs) == 2 * ROUNDS
    seconds: dict[str, list[float]] = {}
    for name, figures in (("dense", found.dense), ("pruned", found.pruned)):
        runs = [each for each in found.runs if each.model == name]
        seconds[name] = [each.decode_seconds for each in runs]
        rates = [32 / each for each in seconds[name]]
        assert figures.decode_tokens_per_second.median == median(rates)
        assert figures.decode_tokens_per_second.least == min(rates)
        assert figures.decode_tokens_per_second.most == max(rates)
        first = [each.first_token_seconds for each in runs]
        assert figures.first_token_seconds.median == median(first)
        assert figures.prefill_tokens_per_second.median == median(32 / each for each in first)
        assert figures.peak_bytes > 0
    ratios = [a / b for a, b in zip(seconds["dense"], seconds["pruned"], strict=True)]
    assert found.decode_gain == median(ratios)


def test_which_model_comes_first_changes_with_every_round(measured: tuple[Report, Path]) -> None:
    found = measured[0].speed
    assert found is not None
    order = [each.model for each in found.runs]
    assert order == ["dense", "pruned", "pruned", "dense"] * 2 + ["dense", "pruned"]


def test_measuring_changes_nothing_of_the_checkpoint(
    measured: tuple[Report, Path], tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    without = run(job(tiny_model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert without.speed is None
    assert without.warnings == measured[0].warnings
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(measured[1] / "out")


def test_nothing_of_it_is_left(measured: tuple[Report, Path]) -> None:
    assert [path for path in (measured[1] / "scratch").rglob("*") if path.is_file()] == []


def test_models_that_are_elsewhere(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = job(tiny_model, text_file, tmp_path / "out", pruning={"layout": "uniform"})
    report = run(spec, tmp_path, open_store=lambda uri: RemoteStore(Path(uri)))
    assert report.speed is not None


def test_a_budget_that_does_not_allow_it_is_said_before_and_after(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    facts = inspect_model(LocalStore(tiny_model))
    free = estimate_job(job(tiny_model, text_file, tmp_path / "out"), facts)
    assert free.speed_bytes > facts.index.total_bytes
    assert not [each for each in free.warnings if "evaluation.speed" in each]
    assert (
        free.workspace_bytes
        > estimate_job(
            job(tiny_model, text_file, tmp_path / "out", evaluation=EASY), facts
        ).workspace_bytes
    )

    limited = job(
        tiny_model,
        text_file,
        tmp_path / "out",
        runtime={"host_memory_bytes": 1_000_000_000, "device": "cpu"},
    )
    (warning,) = [each for each in estimate_job(limited, facts).warnings if "speed" in each]
    assert "more than runtime.host_memory_bytes allows (1,000,000,000)" in warning
    report = run(limited, tmp_path)
    assert report.speed is None
    (said,) = [each for each in report.warnings if "speed" in each]
    assert said.startswith("evaluation.speed: not measured: both models whole")


def test_a_machine_without_so_much_memory(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "available_bytes", lambda: 1000)
    report = run(job(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert report.speed is None
    assert any("1,000 are free" in warning for warning in report.warnings)


def test_a_measurement_that_fails_leaves_the_result(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_PROGRAM", "strucprune_core.no_such_module")
    report = run(job(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert report.speed is None
    assert any("the process that measures ended" in warning for warning in report.warnings)
    assert (tmp_path / "out/strucprune.json").exists()


def test_a_size_that_is_not_published_is_not_measured(text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=3, intermediate=96)

    def sized(name: str, limit: float) -> SizesReport:
        root = tmp_path / name
        spec = job(
            model,
            text_file,
            root / "out",
            pruning={"sparsity": None, "sizes": [0.2, 0.5]},
            evaluation={**SPEED, "max_perplexity_ratio": limit},
        )
        report = run_job(
            spec,
            workspace=LocalStore(root / "workspace"),
            scratch=root / "scratch",
            open_store=lambda uri: LocalStore(Path(uri)),
        )
        assert isinstance(report, SizesReport)
        return report

    ratios = [one.perplexity_ratio or 0.0 for one in sized("all", 1e6).sizes]
    limit = max(1.0001, (min(ratios) * max(ratios)) ** 0.5)
    (rejected,) = [each for each in sized("one", limit).sizes if not each.folder]
    units = tmp_path / "one/workspace/units"
    said = (units / f"speed@{rejected.name}" / "manifest.json").read_text()
    assert "this size is not published" in said


def test_what_a_process_says_of_its_failure_is_escaped() -> None:
    said = measuring._reason(b'{"error": "OSError: \\u001b[31m no"}')
    assert said == r"transformers cannot run a model whole: 'OSError: \x1b[31m no'"
    assert "something else" in measuring._reason(b"[1]")
    assert "something else" in measuring._reason(b"\xff")
