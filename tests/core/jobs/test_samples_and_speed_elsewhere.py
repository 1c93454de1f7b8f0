"""Samples and speed of models in transformers' modules, and of jobs that remove experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.support.tiny_experts import save_tiny_experts

SHOWN = {**EASY, "samples": True, "sample_tokens": 3, "speed": True}


@pytest.mark.parametrize(
    ("name", "pruning"),
    [
        ("olmo2", {"sparsity": 0.3}),
        ("gpt_oss", {"sparsity": 0.25, "structures": ["experts"]}),
        (
            "deepseek_v3",
            {"sparsity": 0.25, "structures": ["experts"], "layout": "per_layer"},
        ),
    ],
)
def test_they_are_shown(
    name: str, pruning: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    saved = save_tiny_experts if "structures" in pruning else save_tiny
    model = saved(name, tmp_path / "model")
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=SHOWN)
    report = run(spec, tmp_path)
    assert not [warning for warning in report.warnings if "speed" in warning]
    assert report.speed is not None
    assert report.samples
    assert {sample.dense.tokens for sample in report.samples} <= {0, 1, 2, 3}
