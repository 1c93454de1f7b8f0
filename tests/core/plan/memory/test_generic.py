"""What a layer in transformers' modules is planned to take, against what it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from strucprune_core.models.generic.outside import held_tensors
from strucprune_core.models.structures import SiteKind
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.forward import Batch, forward_bytes
from strucprune_core.run.tensor_bytes import TensorBytes
from tests.core.models.generic.streams import tiny_stream

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


def test_what_modules_hold_all_the_time_is_planned() -> None:
    stream, _, _ = tiny_stream("gemma4_text")
    assert stream.modules is not None
    on_device = [each for each in stream.modules.model.parameters() if not each.is_meta]
    held = held_tensors(stream.config)
    assert "model.embed_tokens_per_layer.weight" in held
    planned = sum(math.prod(shape) for shape in held.values())
    assert planned == sum(parameter.numel() for parameter in on_device)
