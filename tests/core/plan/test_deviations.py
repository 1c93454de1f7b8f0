"""What a job will do other than it was asked for is said before it runs, and in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import examine_job, inspect_job
from strucprune_core.storage.local import LocalStore
from tests.core.commands.calling import call, prune_command, result_of
from tests.core.jobs.tiny_job import run, tiny_spec

WIDE_STEPS: dict[str, Any] = {"layout": "uniform", "multiple_of": 128}  # Of a width of 192.


def local(uri: str) -> LocalStore:
    return LocalStore(Path(uri))


@pytest.mark.parametrize("allocation", ["uniform", "threshold", "softmax"])
def test_a_sparsity_that_is_not_reached(
    tiny_model: Path, text_file: Path, tmp_path: Path, allocation: str
) -> None:
    pruning = {"sparsity": 0.2, "allocation": allocation, "multiple_of": 128}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    expected = estimate_job(spec, inspect_job(spec, local).model)
    report = run(spec, tmp_path)
    # One layer's step of 64 channels is a twelfth: two are 0.1667, three 0.25.
    reached = 1 / 3 if allocation == "uniform" else 1 / 6
    assert report.sparsity.reached == pytest.approx(reached)
    assert expected.sparsity_reached == pytest.approx(reached)
    assert expected.parameters_after == report.after.parameters
    assert (expected.sparsity_requested, report.sparsity.requested) == (0.2, 0.2)
    for warnings in (expected.warnings, report.warnings):
        (warning,) = warnings
        assert f"0.2 was asked for, {reached:.4g}" in warning
    assert report.warnings[0] in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_nothing_is_said_where_it_is_reached(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"sparsity": 0.3})
    found = estimate_job(spec, inspect_job(spec, local).model)
    assert found.warnings == []
    assert found.sparsity_reached == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("field", "pruning", "words"),
    [
        ("sparsity", {"sparsity": 0.1, **WIDE_STEPS}, "rounds to nothing"),
        ("sparsity", {"sparsity": 0.04, "multiple_of": 128}, "rounds to nothing"),
        ("sparsity", {"sparsity": 0.2, "structures": ["kv_groups"], "layout": "uniform"}, "rounds"),
        ("sparsity", {"sparsity": 0.3, "multiple_of": 256}, "nothing to remove"),
        ("max_sparsity_by_layer", {"max_sparsity_by_layer": {4: 0.0}}, "no layer 4"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_beforehand(
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
    field: str,
    pruning: dict[str, Any],
    words: str,
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    (issue,) = examine_job(spec, local).issues
    assert issue.field == f"pruning.{field}"
    assert words in issue.message
    assert issue.remedy
    with pytest.raises(InvalidSpec, match=words):
        run(spec, tmp_path)
    assert not (tmp_path / "workspace").exists()


def test_fewer_sequences_in_a_step_than_asked_for(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {"distill": {"steps": 1, "batch_sequences": 20}}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    expected = estimate_job(spec, inspect_job(spec, local).model)
    report = run(spec, tmp_path)
    assert report.warnings == expected.warnings
    assert "leaves 7 to train on" in report.warnings[0]


def test_the_command_shows_both(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    options = ("--sparsity", "0.2", "--layout", "uniform", "--multiple-of", "128")
    found = result_of("estimate", tiny_model, *options)
    assert (found["sparsity_requested"], round(found["sparsity_reached"], 4)) == (0.2, 0.3333)
    shown = call("estimate", tiny_model, *options)
    assert "33.3%, 20.0% asked" in shown.stdout
    assert "warning pruning.sparsity: 0.2 was asked for" in " ".join(shown.stderr.split())
    command = prune_command(tiny_model, text_file, tmp_path / "out", *options[2:])
    command[command.index("0.3")] = "0.2"
    pruned = call(*command)
    assert pruned.exit_code == 0
    assert "33.3%, 20.0% asked" in pruned.stdout
    assert "warning pruning.sparsity: 0.2 was asked for" in " ".join(pruned.stderr.split())
    refused = call("estimate", tiny_model, "--sparsity", "0.1", *options[2:])
    assert refused.exit_code == 2
