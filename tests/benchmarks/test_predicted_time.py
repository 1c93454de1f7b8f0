"""The benchmark of predicted times: its jobs can be asked for, and what its table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import predicted_time
from benchmarks.predicted_time import CASES, Inputs, Result, measured, table
from strucprune_core import JobSpec
from tests.support.tiny_llama import make_tiny_llama


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_a_job(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        predicted_time, "save_random_model", lambda root, raw: root.parent / "text.txt"
    )
    inputs = Inputs(Path("/model"), Path("/calibration.txt"), Path("/evaluation.txt"))
    body = CASES[case](inputs, tmp_path)
    JobSpec.model_validate({**body, "output": {"uri_prefix": "/out"}})


def test_a_job_is_predicted_and_then_measured(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(make_tiny_llama(tmp_path / "model"), text_file, text_file)
    monkeypatch.setitem(CASES, "tiny", lambda inputs, _: _tiny(inputs))
    found = measured("tiny", inputs)
    assert found.predicted_seconds > 0
    assert {"capture", "curve", "solve", "publish"} <= set(found.kinds)
    assert found.cpu_seconds == pytest.approx(sum(found.kinds.values()), abs=0.5)


def _tiny(inputs: Inputs) -> predicted_time.Job:
    job = inputs.job(4, 32)
    del job["evaluation"]
    return job


def test_the_table() -> None:
    result = Result("a job", 100.0, 70.0, 150.0, 90.0, 200.0, {"solve": 90.0})
    assert result.ratio == pytest.approx(0.9)
    assert table([result]).splitlines()[-1] == (
        "| a job | 100 s | 70 to 150 s | 90 s | 0.90 | 200 s |"
    )
