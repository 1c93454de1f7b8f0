"""Whole jobs whose matrices do not fit a panel: the same model as when they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.pieces import Plan
from strucprune_core.report.document import Report
from strucprune_core.run import opening
from tests.core.jobs.tiny_job import EASY, checkpoint_of, run, tiny_spec
from tests.core.models.families import random_model
from tests.support.text import make_text
from tests.support.tiny_llama import save_tokenizer


def tensors(directory: Path) -> dict[str, Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def run_in(
    model: Path, text: Path, root: Path, panels: Panels, monkeypatch: pytest.MonkeyPatch
) -> Report:
    structures = ["ffn_channels", "kv_groups"]
    spec = tiny_spec(model, text, root / "out", pruning={"structures": structures}, evaluation=EASY)
    plan = Plan(Tiles(), panels, {})
    monkeypatch.setattr(opening, "plan_job", lambda *_: plan)
    return run(spec, root)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "mixtral"])
def test_panels_change_no_more_than_rounding(
    variant: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(variant)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", text=make_text(), vocab=model.config.vocab_size)
    reports = []
    for name, panels in (
        ("whole", Panels()),
        ("panels", Panels(10, 16)),
        ("again", Panels(10, 16)),
    ):
        root = tmp_path / name
        reports.append(run_in(tmp_path / "model", text_file, root, panels, monkeypatch))
    assert reports[0].before.parameters > reports[0].after.parameters
    assert [layer.width_after for layer in reports[0].layers] == [
        layer.width_after for layer in reports[1].layers
    ]
    for whole, piecewise in zip(reports[0].layers, reports[1].layers, strict=True):
        assert piecewise.reconstruction_error == pytest.approx(whole.reconstruction_error, rel=1e-3)
    expected, found = tensors(tmp_path / "whole/out"), tensors(tmp_path / "panels/out")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert checkpoint_of(tmp_path / "again/out") == checkpoint_of(tmp_path / "panels/out")
    assert not list((tmp_path / "panels/scratch").glob("tmp*"))
