"""The comparison of scores for experts: REAP by loops, and a run from text to table."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeForCausalLM

from benchmarks import experts, small_moe
from benchmarks.baselines import experts as others
from benchmarks.small_moe import Recipe
from tests.support.text import make_text

SMALL = Recipe(
    layers=2, hidden=64, experts=4, width=16, vocabulary=512, steps=2, batch=2, length=16
)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(SMALL.config()).eval()
    for block in others.blocks(model):
        block.gate.weight.data = torch.randn_like(block.gate.weight)
    return model


def reap_by_loops(block: Any, inputs: torch.Tensor) -> list[float]:
    """Equation 9 of the paper, token by token; 0 for experts that no token reaches."""
    sums, tokens = [0.0] * SMALL.experts, [0] * SMALL.experts
    for x in inputs:
        scores = [math.exp(float(row @ x)) for row in block.gate.weight]
        best = sorted(range(SMALL.experts), key=lambda j: -scores[j])[: SMALL.chosen]
        for j in best:
            gate, up = (block.experts.gate_up_proj[j] @ x).chunk(2)
            output = block.experts.down_proj[j] @ (gate / (1 + (-gate).exp()) * up)
            sums[j] += (
                scores[j] / sum(scores[k] for k in best) * float(output.square().sum()) ** 0.5
            )
            tokens[j] += 1
    return [total / max(1, count) for total, count in zip(sums, tokens, strict=True)]


@torch.no_grad()
def test_reap_is_that_of_the_paper(model: Any) -> None:
    block = others.blocks(model)[0]
    inputs = torch.randn(12, SMALL.hidden)
    seen = others.Seen(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.float64))
    others.add(seen, block, inputs[:5])
    others.add(seen, block, inputs[5:])
    wanted = reap_by_loops(block, inputs)
    found = (seen.gated / seen.tokens.clamp(min=1)).tolist()
    assert found == pytest.approx(wanted, rel=1e-4)
    assert int(seen.tokens.sum()) == len(inputs) * SMALL.chosen
    best = sorted(sorted(range(4), key=lambda j: -wanted[j])[:3])
    assert others.by_reap([seen], 3) == [best]


@torch.no_grad()
def test_experts_that_nothing_reaches_go_without_a_difference() -> None:
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(replace(SMALL, chosen=1).config()).eval()
    for block in others.blocks(model):
        row = torch.randn(SMALL.hidden)  # Half of a score is never the highest.
        block.gate.weight.data = torch.stack([0.5 * row, row, -0.5 * row, -row])
    windows = np.arange(16, dtype=np.int32).reshape(2, 8)
    tokens = torch.from_numpy(windows).long()
    before = model(tokens, use_cache=False).logits
    seen = others.seen_by(model, windows)
    assert all(each.tokens[[0, 2]].tolist() == [0, 0] for each in seen)
    assert all(int(each.tokens.sum()) == windows.size for each in seen)
    others.keep(model, [[1, 3]] * SMALL.layers)
    assert model.model.layers[0].mlp.gate.weight.shape == (2, SMALL.hidden)
    assert torch.allclose(model(tokens, use_cache=False).logits, before, atol=1e-6)


def test_chance_depends_on_the_seed() -> None:
    first = others.by_chance(4, 16, 8, seed=0)
    assert first == others.by_chance(4, 16, 8, seed=0) != others.by_chance(4, 16, 8, seed=1)
    assert all(len(set(layer)) == 8 and layer == sorted(layer) for layer in first)


def test_a_run_from_text_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experts, "_recipe", lambda options: SMALL)
    text = tmp_path / "text.txt"
    text.write_text(make_text(), encoding="utf-8")
    arguments = (
        f"experts --calibration {text} --evaluation {text} --model {tmp_path / 'moe'} "
        f"--levels 0.25 --seeds 0 1 --samples 6 --sequences 2 --json {tmp_path / 'out.json'}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert experts.main() == 0  # Both REAPs kept the same experts.
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["rows"]) == 2 * len(experts.METHODS)
    for row in result["rows"]:
        assert [len(layer) for layer in row["kept"]] == [3, 3]
        assert row["ratio"] == pytest.approx(row["perplexity"] / result["dense"]["perplexity"])
    assert "| REAP, written from the paper | " in capsys.readouterr().out
    with pytest.raises(ValueError, match="trained otherwise"):
        small_moe.ensure(tmp_path / "moe", "another text", SMALL, seed=0)


def test_reaps_that_differ_are_noticed() -> None:
    def row(method: str, kept: list[list[int]]) -> experts.Row:
        return experts.Row(method, 0.5, 0, 10.0, 1.0, kept)

    assert experts.reaps_agree([row("reap", [[0]]), row("reap-paper", [[0]])])
    assert not experts.reaps_agree([row("reap", [[0]]), row("reap-paper", [[1]])])
