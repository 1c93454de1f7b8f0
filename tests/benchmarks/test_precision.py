"""The committed figures on precision meet the bars, and the comparison is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.precision import RESULTS, compared
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_bfloat16_keeps_the_ratio(results: dict[str, Any]) -> None:
    assert abs(results["bfloat16_against_float32"]["ratio_change"]) <= 0.005
    assert abs(results["bfloat16_against_float32"]["dense_perplexity_change"]) <= 0.005
    jobs = results["jobs"]
    assert [jobs[each]["precision"] for each in jobs] == ["float32", "bfloat16"]
    for job in jobs.values():
        assert job["ratio"] == pytest.approx(job["pruned_perplexity"] / job["dense_perplexity"])


def test_float32_solves_as_float64(results: dict[str, Any]) -> None:
    solves = results["solves"]
    assert solves["curves_in_float32"] == solves["repairs_in_float32"] == solves["sites"]
    assert solves["same_channels_kept_least"] >= 0.98
    assert solves["damage_difference_most"] <= 1e-3
    assert solves["repair_difference_most"] <= 1e-3


def test_a_job_is_not_far_from_itself(text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    report = run(tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert set(compared(report, report).values()) == {0.0}
