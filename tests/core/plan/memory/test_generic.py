"""What a layer in transformers' modules is planned to take, against what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.training.recovery import RecoveryOptions, Tokens, recover
from strucprune_core.models.backward import backward_layer
from strucprune_core.models.experts import experts_of
from strucprune_core.models.generic.outside import held_tensors
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import SiteKind, sites
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.device import device_terms
from strucprune_core.plan.memory.forward import Batch, forward_bytes, layer_bytes
from strucprune_core.run.tensor_bytes import TensorBytes
from strucprune_core.spec import JobSpec
from tests.core.models.generic.streams import tiny_stream
from tests.coverage.tiny import tiny_config

WIDE = {"hidden_size": 256, "n_embed": 256, "intermediate_size": 1024}


@pytest.mark.parametrize("record", [(), ("ffn",)], ids=str)
@pytest.mark.parametrize("batch", [Batch(4, 128), Batch(1, 300)], ids=["four", "one"])
@pytest.mark.parametrize("name", ["olmo2", "bloom", "glm4", "phi", "exaone_moe"])
def test_a_layer_takes_no_more_than_planned(
    name: str, batch: Batch, record: tuple[SiteKind, ...]
) -> None:
    """The formula knows no architecture, so it is a bound, and not a loose one."""
    stream, _, _ = tiny_stream(name, **WIDE)
    size = (batch.sequences, batch.length, stream.config.hidden_size)
    hidden = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    stream.run_layer(1, stream.layer(1), hidden)
    with torch.inference_mode(), TensorBytes() as counted:
        stream.run_layer(1, stream.layer(1), hidden, record=record)
        peak = counted.take_peak()
    planned = forward_bytes(stream.config, 1, batch, Tiles(), record=record)
    assert peak <= planned <= 2 * peak


@pytest.mark.parametrize("batch", [Batch(4, 128), Batch(1, 300)], ids=["four", "one"])
@pytest.mark.parametrize(
    "tiles", [Tiles(), Tiles(expert_by_expert=True)], ids=["all", "one_by_one"]
)
@pytest.mark.parametrize(
    "name", ["qwen2_moe", "gpt_oss", "granitemoe", "llama4_text", "nemotron_h", "qwen3_vl_moe"]
)
def test_experts_take_no_more_than_planned(name: str, tiles: Tiles, batch: Batch) -> None:
    """Tokens are all equal, so the same experts get all of them: the most that they can take."""
    stream, _, _ = wide_experts(name)
    layer = max(n for n in range(stream.config.layers) if experts_of(stream.config, n))
    token = np.random.default_rng(0).standard_normal(stream.config.hidden_size, dtype=np.float32)
    hidden = np.tile(token, (batch.sequences, batch.length, 1))
    stream = replace(stream, tiles=tiles)
    stream.run_layer(layer, stream.layer(layer), hidden)
    with torch.inference_mode(), TensorBytes() as counted:
        stream.run_layer(layer, stream.layer(layer), hidden)
        peak = counted.take_peak()
    planned = forward_bytes(stream.config, layer, batch, tiles)
    assert peak <= planned <= 2 * peak
    if tiles.expert_by_expert:
        assert peak < layer_bytes(stream.config, layer)


def wide_experts(name: str) -> tuple[ModelStream, Any, Any]:
    """A tiny model with wide experts: their matrices are most of a layer."""
    keys = tiny_config(name).get_text_config().to_dict()
    changes = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 512}
    changes |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16)
    return tiny_stream(name, **{key: value for key, value in changes.items() if key in keys})


def job(pruning: dict[str, Any], length: int) -> JobSpec:
    sections = {
        "model": {"uri": "/m"},
        "output": {"uri_prefix": "/o"},
        "pruning": {"sparsity": 0.3} | pruning,
        "calibration": {"uri": "/t", "samples": 16, "sequence_length": length},
    }
    return JobSpec.model_validate(sections)


@pytest.mark.parametrize("length", [128, 1500])
@pytest.mark.parametrize("name", ["olmo2", "glm4", "bloom", "phi", "stablelm"])
def test_recovery_takes_no_more_than_planned(name: str, length: int) -> None:
    """A batch is whole sequences: one, where that has more tokens than a batch is to have."""
    stream, _, _ = tiny_stream(name, **WIDE)
    shape = (max(2, 2048 // length), length, stream.config.hidden_size)
    given = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    tokens = Tokens(given, given, np.ones(shape[:2], dtype=np.float32))
    trained = [
        tensor.role
        for site in sites(stream.config, 1, ("ffn_channels",))
        for tensor in (site.output, *site.coupled)
        if tensor.role.endswith(".weight")
    ]
    with TensorBytes() as counted:
        dense = stream.whole_layer(1)
        pruned = {role: tensor.clone() for role, tensor in dense.items()}

        def block(x: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return stream.forward_layer(1, x, {**pruned, **weights}).hidden - x

        weights = {role: pruned[role] for role in trained}
        recover(block, weights, tokens, tokens, RecoveryOptions(steps=2))
        peak = counted.take_peak()
    spec = job({"recover": {}}, length)
    planned = device_terms(spec, stream.config, Tiles(), Panels())["recovery"]
    assert peak <= planned <= 3 * peak


@pytest.mark.parametrize("name", ["olmo2", "glm4", "bloom", "exaone_moe"])
def test_gradients_take_no_more_than_planned(name: str) -> None:
    stream, _, _ = tiny_stream(name, **WIDE)
    shape = (1, 256, stream.config.hidden_size)  # A probe window.
    given = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with TensorBytes() as counted:
        backward_layer(stream, 1, stream.whole_layer(1), given, given)
        peak = counted.take_peak()
    planned = device_terms(job({"energy": "gradient"}, 256), stream.config, Tiles(), Panels())
    assert peak <= planned["gradient"] <= 4 * peak


def test_what_modules_hold_all_the_time_is_planned() -> None:
    stream, _, _ = tiny_stream("gemma4_text")
    assert stream.modules is not None
    on_device = [each for each in stream.modules.model.parameters() if not each.is_meta]
    held = held_tensors(stream.config)
    assert "model.embed_tokens_per_layer.weight" in held
    planned = sum(math.prod(shape) for shape in held.values())
    assert planned == sum(parameter.numel() for parameter in on_device)
