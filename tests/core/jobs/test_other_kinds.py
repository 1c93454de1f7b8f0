"""Checkpoints that are close to what can be pruned: `validate` and the job say the same of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strucprune_core.errors import StrucPruneError
from strucprune_core.plan.inspection import examine_job
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny
from tests.support.tiny_llama import make_tiny_llama

Tensors = dict[str, Tensor]
HEAD, LORA = "lm_head.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"
SU = {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}}


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def without_head(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def base_model(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): t for name, t in without_head(tensors).items()}


def classifier(tensors: Tensors) -> Tensors:
    hidden = tensors["model.embed_tokens.weight"].shape[1]
    return {**without_head(tensors), "score.weight": torch.ones(2, hidden)}


def adapter(tensors: Tensors) -> Tensors:
    return {**tensors, LORA: torch.ones(2, 2)}


def wrapped(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def with_vision(tensors: Tensors) -> Tensors:
    return {**tensors, "vision_tower.embed.weight": torch.ones(2, 2)}


Case = tuple[str, Callable[[Tensors], Tensors], dict[str, Any], str, str]
# Architecture, change of the tensors, change of config.json, message, remedy.
CASES: dict[str, Case] = {
    "no head": ("olmo2", without_head, {}, "'lm_head.weight' is missing", "AutoModelForCausalLM"),
    "base model": ("olmo2", base_model, {}, "'lm_head.weight' is missing", "AutoModelForCausalLM"),
    "classifier": ("olmo2", classifier, {}, "head of a classifier", "trained from"),
    "classifier, tied": ("cohere", classifier, {}, "head of a classifier", "trained from"),
    "adapter": ("olmo2", adapter, {}, "adapter", "merge_and_unload"),
    "wrapped": ("olmo2", wrapped, {}, "wrapped by training code", "unwrapped"),
    "su": ("olmo2", as_they_are, SU, "'su' .rope_scaling .* old name of 'longrope'", "longrope"),
    "llama, su": ("llama", as_they_are, SU, "'su' .rope_scaling .* of 'longrope'", "longrope"),
    "llama, classifier": ("llama", classifier, {}, "head of a classifier", "trained from"),
    "llama, vision": ("llama", with_vision, {}, "multimodal model", "whole model"),
}


def changed(case: Case, directory: Path) -> Path:
    """A tiny model that is something else than a language model on its own."""
    architecture, change, config, _, _ = case
    if architecture == "llama":
        make_tiny_llama(directory)
    else:
        save_tiny(architecture, directory)
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    stated = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(stated | config))
    return directory


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused_before_any_work(case: Case, text_file: Path, tmp_path: Path) -> None:
    model = changed(case, tmp_path / "model")
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY)
    (issue,) = examine_job(spec, lambda uri: LocalStore(Path(uri))).issues
    with pytest.raises(StrucPruneError, match=case[3]) as caught:
        run(spec, tmp_path)
    assert str(issue) == str(caught.value)
    assert issue.field == "model.uri"
    assert case[4] in str(issue.remedy)


@pytest.mark.parametrize("where", ["model.", "model.layers.0."])
def test_a_tensor_that_no_class_has(where: str, text_file: Path, tmp_path: Path) -> None:
    """Only transformers knows the names of a generic model; its job says it, in words."""
    name = f"{where}something.weight"
    case: Case = ("olmo2", lambda tensors: {**tensors, name: torch.ones(2, 2)}, {}, "", "")
    model = changed(case, tmp_path / "model")
    with pytest.raises(StrucPruneError, match=f"expects no tensor '{name}'") as caught:
        run(tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert caught.value.field == "model.uri"
    assert "config.json" in str(caught.value.remedy)


def test_a_base_model_whose_head_is_tied_is_pruned(text_file: Path, tmp_path: Path) -> None:
    case: Case = ("cohere", base_model, {"architectures": ["CohereModel"]}, "", "")
    model = changed(case, tmp_path / "model")
    report = run(tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert report.after.parameters < report.before.parameters
