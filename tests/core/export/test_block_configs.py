"""The export for runtimes that know `nemotron-nas`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import strucprune_core
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.export import block_configs, modeling_strucprune
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

PRUNED: Any = modeling_strucprune  # untyped: it travels with checkpoints
_CONFIG = """
import sys, json
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
again = type(config).from_dict(config.to_dict())
print(json.dumps([
    type(config).__module__, config.model_type, again.block_configs == config.block_configs,
    [block.ffn.ffn_mult for block in config.block_configs],
    [block.attention.n_heads_in_group for block in config.block_configs],
]))
"""


def runtimes_width(mult: float, hidden_size: int) -> int:
    """As vLLM and MLX-LM compute it; MLX-LM rounds the multiplier to six digits first."""
    width = int(2 * round(mult, 6) * hidden_size / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


@given(blocks=st.integers(1, 1024), hidden_size=st.integers(1, 65536))
def test_runtimes_compute_the_width_that_was_meant(blocks: int, hidden_size: int) -> None:
    width = blocks * 256
    mult = block_configs.ffn_mult(width, hidden_size)
    assert runtimes_width(mult, hidden_size) == width
    assert block_configs.width_of(mult, hidden_size) == width


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> tuple[Path, Report]:
    root = tmp_path_factory.mktemp("blocks")
    model = make_tiny_llama(root / "model", intermediate=600, tie=False, max_shard_size="500KB")
    pruning = {"exports": ["block_configs"], "sparsity": 0.5}
    return root / "out", run(tiny_spec(model, text_file, root / "out", pruning=pruning), root)


def test_weights_are_filled_up_with_zeros(pruned: tuple[Path, Report]) -> None:
    out, report = pruned
    narrow = load_file(out / "model.safetensors")
    wide = load_file(out / "block_configs/model.safetensors")
    assert set(wide) == set(narrow)
    config = json.loads((out / "block_configs/config.json").read_text())
    widths = [runtimes_width(block["ffn"]["ffn_mult"], 64) for block in config["block_configs"]]
    kept = [layer.width_after for layer in report.layers]
    assert all(width - 256 < left <= width for width, left in zip(widths, kept, strict=True))
    assert len(set(widths)) > 1
    for number, width in enumerate(widths):
        here = f"model.layers.{number}.mlp."
        assert wide[f"{here}gate_proj.weight"].shape == (width, 64)
        assert wide[f"{here}down_proj.weight"].shape == (64, width)
    for name, values in narrow.items():
        where = tuple(slice(size) for size in values.shape)
        assert torch.equal(wide[name][where], values), name
        assert wide[name].count_nonzero() == values.count_nonzero(), name


def test_the_filled_up_model_is_the_same_function(pruned: tuple[Path, Report]) -> None:
    out, _ = pruned
    tokens = torch.arange(3, 35)[None]
    raw = block_configs.raw_config(json.loads((out / "block_configs/config.json").read_text()))
    # transformers' own decoder in the padded widths, with the weights of the export.
    kind = raw["model_type"]
    wide = PRUNED.MODELS[kind](PRUNED.CONFIGS[kind].from_dict(raw)).eval()
    wide.load_state_dict(load_file(out / "block_configs/model.safetensors"), strict=True)
    narrow = strucprune_core.load_pretrained(str(out))
    with torch.inference_mode():
        assert torch.allclose(wide(tokens).logits, narrow(tokens).logits, atol=1e-5)


def test_the_config_that_runtimes_read(pruned: tuple[Path, Report]) -> None:
    config = json.loads((pruned[0] / "block_configs/config.json").read_text())
    assert config["model_type"] == "nemotron-nas"
    assert config["architectures"] == ["DeciLMForCausalLM"]
    # MLX-LM has other defaults than llama for what is not said.
    assert (config["rope_theta"], config["tie_word_embeddings"]) == (10000.0, False)
    assert config["num_attention_heads"] * 16 == config["hidden_size"]
    for block in config["block_configs"]:
        assert block["attention"] == {
            "n_heads_in_group": 2,
            "no_op": False,
            "replace_with_linear": False,
        }
        assert set(block["ffn"]) == {"ffn_mult", "no_op", "replace_with_linear"}
    assert not {"strucprune", "intermediate_size", "head_dim"} & set(config)


def test_transformers_reads_the_config_for_a_runtime(
    tmp_path: Path, pruned: tuple[Path, Report]
) -> None:
    folder = pruned[0] / "block_configs"
    done = subprocess.run(
        [sys.executable, "-c", _CONFIG, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    module, kind, survives, mults, groups = json.loads(done.stdout)
    assert "transformers_modules" in module
    assert (kind, survives, groups) == ("nemotron-nas", True, [2] * 4)
    blocks = json.loads((folder / "config.json").read_text())["block_configs"]
    assert mults == [block["ffn"]["ffn_mult"] for block in blocks]


def test_multiples_of_256_need_no_filling(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2, intermediate=768)
    pruning = {"exports": ["block_configs"], "multiple_of": 256, "sparsity": 0.5}
    report = run(tiny_spec(model, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    plain = load_file(tmp_path / "out/model.safetensors")
    exported = load_file(tmp_path / "out/block_configs/model.safetensors")
    assert {layer.width_after % 256 for layer in report.layers} == {0}
    assert all(torch.equal(exported[name], values) for name, values in plain.items())


def test_several_files(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strucprune_core.run.shards.MAX_SHARD_BYTES", 300_000)
    model = make_tiny_llama(tmp_path / "model", layers=2)
    pruning = {"exports": ["block_configs"]}
    run(tiny_spec(model, text_file, tmp_path / "out", pruning=pruning), tmp_path)
    folder = tmp_path / "out/block_configs"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 1
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("change", [{"model_type": "llama"}, {"num_hidden_layers": 5}])
def test_other_configs_are_not_read(pruned: tuple[Path, Report], change: dict[str, str]) -> None:
    config = json.loads((pruned[0] / "block_configs/config.json").read_text())
    with pytest.raises(InvalidCheckpoint):
        block_configs.raw_config({**config, **change})


def test_padding_is_idempotent(tiny_model: Path) -> None:
    facts = inspect_model(LocalStore(tiny_model))
    wide = block_configs.padded(facts.config)
    assert wide.intermediate_sizes == (256,) * 4
    assert block_configs.padded(wide) == wide
