"""A checkpoint of another kind is recognised by its tensors, with a remedy that helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore

Tensors = dict[str, np.ndarray[Any, Any]]
Q_PROJ = "model.layers.0.self_attn.q_proj"
LAYER_9 = "model.layers.9.mlp.up_proj.weight"


def _with(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name: np.ones((2, 2), np.float32) for name in names}}


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def _all_below(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def _packed(dtype: type) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        **tensors,
        f"{Q_PROJ}.weight": np.ones((64, 8), dtype),
        f"{Q_PROJ}.scales": np.ones((64, 1), np.float32),
    }


CASES: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str, str]] = {
    "adapter": (_with(f"{Q_PROJ}.lora_A.weight"), {}, "adapter", "merge_and_unload"),
    "adapter inside": (_renamed(Q_PROJ, f"{Q_PROJ}.base_layer"), {}, "adapter", "merge_and_unload"),
    "PEFT": (_all_below("base_model.model."), {}, "adapter", "merge_and_unload"),
    "GPTQ": (_renamed(f"{Q_PROJ}.weight", f"{Q_PROJ}.qweight"), {}, "quantised", "unquantised"),
    "fp8": (_with(f"{Q_PROJ}.weight_scale_inv"), {}, "quantised", "unquantised"),
    "MLX": (_packed(np.uint32), {}, "quantised models", "unquantised"),
    "bitsandbytes": (_packed(np.uint8), {}, "dtype U8", "unquantised"),
    "a layer after the last": (
        _with(LAYER_9),
        {},
        "is of layer 9, .* there are 4 layers",
        "num_nextn_predict_layers",
    ),
    "multimodal": (_with("vision_tower.embed.weight"), {}, "multimodal", "language model alone"),
    "classifier": (_with("score.weight"), {}, "classifier", "trained from"),
    "classifier, untied": (
        _with("score.weight"),
        {"tie_word_embeddings": False},
        "lm_head.weight' is missing; 'score.weight' is the head of a classifier",
        "trained from",
    ),
    "no head": (
        _with(),
        {"tie_word_embeddings": False},
        "lm_head.weight' is missing: config.json says",
        "tie_word_embeddings to true",
    ),
    "wrapped": (_all_below("module."), {}, "wrapped by training code", "unwrapped"),
    "compiled": (_all_below("_orig_mod."), {}, "wrapped by training code", "unwrapped"),
    "bias": (_with(f"{Q_PROJ}.bias"), {}, "there is none", "attention_bias"),
    "fewer layers": (_with(), {"num_hidden_layers": 5}, "layers.4.* is missing", "saved with it"),
    "more layers": (_with(), {"num_hidden_layers": 3}, "there are 3 layers", "leaves it out"),
    "other width": (_with(), {"intermediate_size": 190}, "config.json promises", "saved with"),
    "unheard of": (_with("model.something.weight"), {}, "not part of", "saved with these"),
}


@pytest.mark.parametrize(("change", "config", "reason", "remedy"), CASES.values(), ids=CASES)
def test_what_a_checkpoint_is_instead(
    tiny_model: Path,
    tmp_path: Path,
    change: Callable[[Tensors], Tensors],
    config: dict[str, Any],
    reason: str,
    remedy: str,
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors")
    stated = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(stated | config))
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        inspect_model(LocalStore(model))
    assert remedy in str(caught.value.remedy)
    assert "Copy the model again from where it came" not in str(caught.value.remedy)


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_quantised_by_its_config(tiny_model: Path, tmp_path: Path, key: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    stated = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(stated | {key: {"bits": 4}}))
    with pytest.raises(UnsupportedArchitecture, match=f"quantised \\({key}") as caught:
        inspect_model(LocalStore(model))
    assert "unquantised" in str(caught.value.remedy)
