"""Tensors that draft further tokens (MTP): kept where the result still loads them, else dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from strucprune_core.export.loading import load_pretrained
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.support.tiny_experts import save_tiny_experts
from tests.support.tiny_llama import make_tiny_llama

Tensors = dict[str, Tensor]
UNIFORM = {"layout": "uniform", "allocation": "uniform"}


def with_layer_after_the_last(model: Path) -> Tensors:
    """A layer as DeepSeek-V3 and GLM-4.5 publish it, by the number after the last."""
    config = json.loads((model / "config.json").read_text())
    count, hidden = config["num_hidden_layers"], config["hidden_size"]
    prefix = f"model.layers.{count}."
    added = {
        prefix + name.split(".", 3)[3]: tensor.clone()
        for name, tensor in load_file(model / "model.safetensors").items()
        if name.startswith(f"model.layers.{count - 1}.")
    }
    added |= {f"{prefix}{name}.weight": torch.ones(hidden) for name in ("enorm", "hnorm")}
    added[f"{prefix}shared_head.norm.weight"] = torch.ones(hidden)
    return added | {f"{prefix}eh_proj.weight": torch.rand(hidden, 2 * hidden)}


def with_names_apart(model: Path) -> Tensors:
    """A layer as Qwen3-Next and Qwen3.5 publish it."""
    config = json.loads((model / "config.json").read_text())
    hidden = config["hidden_size"]
    return {
        "mtp.fc.weight": torch.rand(hidden, 2 * hidden),
        "mtp.norm.weight": torch.ones(hidden),
        "mtp.layers.0.mlp.down_proj.weight": torch.rand(hidden, 24),
        "mtp.layers.0.self_attn.o_proj.weight": torch.rand(hidden, hidden),
    }


def add(model: Path, tensors: Tensors, **config: Any) -> Tensors:
    """Add tensors to a checkpoint, and keys to its config."""
    file = model / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})
    stated = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(stated | config))
    return tensors


def warned(spec: JobSpec, report: Report) -> bool:
    """Whether report and estimate (which `validate` shows) warn of what is dropped."""
    store = LocalStore(Path(spec.model.uri))
    facts = inspect_model(store, experts=spec.pruning.removes_experts)
    told = [
        any("draft further tokens" in line for line in warnings)
        for warnings in (report.warnings, estimate_job(spec, facts).warnings)
    ]
    assert told[0] == told[1]
    return told[0]


def stored(directory: Path) -> Tensors:
    tensors: Tensors = load_file(directory / "model.safetensors")
    return tensors


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def generic(kind: str, directory: Path) -> tuple[Path, Tensors]:
    """A model that runs in transformers' modules, and what drafts in its files."""
    if kind == "qwen3_next":
        model = save_tiny(kind, directory)
        return model, add(model, with_names_apart(model))
    model = save_tiny_experts("deepseek_v3", directory)
    return model, add(model, with_layer_after_the_last(model), num_nextn_predict_layers=1)


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_next"])
def test_channels_go_and_what_drafts_stays(kind: str, text_file: Path, tmp_path: Path) -> None:
    model, added = generic(kind, tmp_path / "model")
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY)
    report = run(spec, tmp_path)
    assert not warned(spec, report)
    written = stored(tmp_path / "out")
    assert all(torch.equal(written[name], tensor) for name, tensor in added.items())
    left = sum(t.numel() for name, t in written.items() if name not in added)
    assert report.after.parameters == left < report.before.parameters
    assert config_of(tmp_path / "out").get("num_nextn_predict_layers") == config_of(model).get(
        "num_nextn_predict_layers"
    )
    loaded = load_pretrained(str(tmp_path / "out")).eval()
    assert torch.isfinite(loaded(torch.arange(5, 17).view(1, 12)).logits).all()
    again = tiny_spec(tmp_path / "out", text_file, tmp_path / "again", evaluation=EASY)
    run(again, tmp_path / "2")
    written = stored(tmp_path / "again")
    assert all(torch.equal(written[name], tensor) for name, tensor in added.items())


def test_a_layer_that_drafts_is_known_without_the_key(tmp_path: Path) -> None:
    """By its projection of two hidden states: configs were published without the key."""
    model = save_tiny_experts("deepseek_v3", tmp_path / "model")
    added = add(model, with_layer_after_the_last(model))
    stated = config_of(model)
    stated.pop("num_nextn_predict_layers", None)
    stated.pop("num_mtp_layers", None)
    (model / "config.json").write_text(json.dumps(stated))
    facts = inspect_model(LocalStore(model))
    assert {name for name, _ in facts.config.drafting} == set(added)
    assert facts.config.layers == stated["num_hidden_layers"]


def test_experts_go_and_what_drafts_with_them(text_file: Path, tmp_path: Path) -> None:
    model, added = generic("deepseek_v3", tmp_path / "model")
    pruning = {"sparsity": 0.25, "structures": ["experts"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert warned(spec, report)
    assert not set(added) & set(stored(tmp_path / "out"))
    assert config_of(tmp_path / "out")["num_nextn_predict_layers"] == 0
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.n_routed_experts == 6
    facts = inspect_model(LocalStore(model), experts=True)
    estimated = estimate_job(spec, facts)
    assert estimated.bytes_after == pytest.approx(report.after.bytes, rel=0.02)


def test_what_drafts_without_experts_stays(text_file: Path, tmp_path: Path) -> None:
    model = save_tiny_experts("qwen3_moe", tmp_path / "model")
    added = add(model, with_names_apart(model))
    pruning = {"sparsity": 0.25, "structures": ["experts"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    assert not warned(spec, run(spec, tmp_path))
    assert set(added) < set(stored(tmp_path / "out"))


@pytest.mark.parametrize("pruning", [{}, UNIFORM], ids=["per_layer", "uniform"])
def test_families_that_are_written_out(
    pruning: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    model = make_tiny_llama(tmp_path / "model")
    added = add(model, with_names_apart(model), num_nextn_predict_layers=1)
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    written = stored(tmp_path / "out")
    assert warned(spec, report) == bool(pruning)
    assert set(added).isdisjoint(written) == bool(pruning)
    assert config_of(tmp_path / "out")["num_nextn_predict_layers"] == (0 if pruning else 1)
    assert report.before.bytes > report.after.bytes
    assert report.after.parameters == sum(
        tensor.numel() for name, tensor in written.items() if name not in added
    )


def test_exports_are_without_what_drafts(text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    added = add(model, with_names_apart(model))
    pruning = {"exports": ["block_configs"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    run(spec, tmp_path)
    assert set(added) < set(stored(tmp_path / "out"))
    assert set(added).isdisjoint(stored(tmp_path / "out/block_configs"))


@pytest.mark.parametrize("structures", [["layers"], ["attention_blocks"]], ids=str)
def test_blocks_go_and_what_drafts_with_them(
    structures: list[str], text_file: Path, tmp_path: Path
) -> None:
    """Its number would be wrong after other layers were numbered anew."""
    model = make_tiny_llama(tmp_path / "model")
    added = add(model, with_layer_after_the_last(model), num_nextn_predict_layers=1)
    pruning = {"sparsity": 0.25, "structures": structures}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    assert warned(spec, run(spec, tmp_path))
    assert not any("eh_proj" in name for name in stored(tmp_path / "out"))
    assert config_of(tmp_path / "out")["num_nextn_predict_layers"] == 0
    assert len(added) > 4
