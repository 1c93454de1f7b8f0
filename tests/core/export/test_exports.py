"""Pruned checkpoints load in transformers, and compute what the streamed forward computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import strucprune_core
from tests.core.jobs.tiny_job import run, tiny_spec

TOKENS = torch.arange(3, 35)[None]

_REMOTE_CODE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__module__)
torch.save(model(torch.arange(3, 35)[None]).logits, sys.argv[2])
"""


@pytest.fixture(scope="module")
def per_layer(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text_file: Path
) -> tuple[Path, list[int]]:
    root = tmp_path_factory.mktemp("per-layer")
    report = run(tiny_spec(tiny_model, text_file, root / "out"), root)
    return root / "out", [layer.width_after for layer in report.layers]


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(TOKENS).logits
    return logits


def test_the_library_loads_without_remote_code(per_layer: tuple[Path, list[int]]) -> None:
    directory, widths = per_layer
    model = strucprune_core.load_pretrained(str(directory))
    assert [layer.mlp.gate_proj.out_features for layer in model.model.layers] == widths
    weights = load_file(directory / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in weights:
            assert torch.equal(tensor, weights[name]), name


def test_auto_model_runs_the_shipped_code(
    tmp_path: Path, per_layer: tuple[Path, list[int]]
) -> None:
    directory, _ = per_layer
    done = subprocess.run(
        [sys.executable, "-c", _REMOTE_CODE, str(directory), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "transformers_modules" in done.stdout  # the file of the checkpoint, not ours
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    expected = logits_of(strucprune_core.load_pretrained(str(directory)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_uniform_checkpoint_is_plain_llama(
    tmp_path: Path, tiny_model: Path, text_file: Path
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"layout": "uniform"})
    report = run(spec, tmp_path)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert {layer.width_after for layer in report.layers} == {config["intermediate_size"]}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == report.after.parameters


def test_keeping_everything_is_exact(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    # One channel goes in all; every layer that loses none must keep its weights to the bit.
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"sparsity": 1 / 700})
    report = run(spec, tmp_path)
    dense = load_file(tiny_model / "model.safetensors")
    pruned = load_file(tmp_path / "out/model.safetensors")
    whole = [layer.index for layer in report.layers if layer.width_after == layer.width_before]
    assert whole
    for index in whole:
        for role in ("gate_proj", "up_proj"):
            name = f"model.layers.{index}.mlp.{role}.weight"
            assert torch.equal(dense[name], pruned[name])
        name = f"model.layers.{index}.mlp.down_proj.weight"
        assert torch.allclose(dense[name], pruned[name], atol=1e-6)
