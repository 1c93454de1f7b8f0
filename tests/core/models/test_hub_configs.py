"""Configs of real models, in the words that their publishers used."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from strucprune_core.checkpoint.index import MAX_HEADERS_BYTES
from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import allowance, expected_tensors
from tests.core.models.hub_configs import HUB

# With as many experts and layers as any published model has.
LARGEST_MIXTURE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 384,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 163840,
}


@pytest.mark.parametrize("name", HUB)
def test_parameters_are_as_many_as_published(name: str) -> None:
    config, millions = HUB[name]
    shapes = expected_tensors(parse_config(config))
    found = sum(math.prod(shape) for shape in shapes.values())
    assert found / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("name", HUB)
def test_old_words_mean_what_transformers_makes_of_them(name: str) -> None:
    config, _ = HUB[name]
    rest = {k: v for k, v in copy.deepcopy(config).items() if k not in ("model_type", "auto_map")}
    normalised = AutoConfig.for_model(config["model_type"], **rest)
    assert parse_config(config) == parse_config(normalised.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(normalised)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shapes = expected_tensors(parse_config(config))
    assert parameters == sum(math.prod(shape) for shape in shapes.values())


def header_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of the headers of a checkpoint, in shards of 5 GB."""
    end = 123_456_789_012
    entries = {
        name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [end - 1, end]}
        for name, shape in shapes.items()
    }
    return len(json.dumps(entries))


@pytest.mark.parametrize("name", [*HUB, "a mixture of 384 experts in 61 layers"])
def test_twice_the_headers_of_a_real_model_are_allowed(name: str) -> None:
    """Also biases, buffers and scales that no family here has."""
    config = HUB[name][0] if name in HUB else LARGEST_MIXTURE
    parsed = parse_config(config)
    shapes, allowed = expected_tensors(parsed), allowance(parsed)
    assert allowed.tensors > 2 * len(shapes)
    assert allowed.header_bytes > min(MAX_HEADERS_BYTES - 1, 2 * header_bytes(shapes))
    assert header_bytes(shapes) < MAX_HEADERS_BYTES / 2


def test_what_a_small_model_may_have_is_little() -> None:
    allowed = allowance(parse_config(HUB["meta-llama/Llama-2-7b-hf"][0]))
    assert allowed.tensors < 4000
    assert allowed.header_bytes < 2 * 2**20
