"""Checkpoints that were saved from the base model, as GPT-2 and OPT lie on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.models.streaming import ModelStream
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from tests.core.models.families import random_model
from tests.core.models.reference import random_tokens, reference_logits, streamed_logits

CASES = {
    "gpt2": ("transformer.", {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}),
    "opt": ("model.", {"decoder.version": torch.zeros(1)}),
    "gpt_neox": ("gpt_neox.", {"layers.1.attention.masked_bias": torch.zeros(1)}),
    "llama": ("model.", {}),
}


@pytest.mark.parametrize("variant", CASES)
def test_names_without_the_base_models_prefix(variant: str, tmp_path: Path) -> None:
    model, directory = random_model(variant), tmp_path / "model"
    model.save_pretrained(directory)
    prefix, buffers = CASES[variant]
    stored = load_file(directory / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    assert not any(name.startswith(prefix) for name in bare)
    save_file({**bare, **buffers}, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text("{}")
    facts = inspect_model(LocalStore(directory))
    stream = ModelStream(facts.config, TensorReader(facts.index), torch.device("cpu"))
    tokens = random_tokens(2, 24, 512)
    torch.testing.assert_close(
        streamed_logits(stream, tokens, tmp_path),
        reference_logits(model, tokens),
        rtol=1e-4,
        atol=1e-4,
    )
