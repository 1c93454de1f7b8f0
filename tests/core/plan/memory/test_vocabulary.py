"""The same at the model's two ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import embed, kl_divergences, token_losses
from strucprune_core.plan.memory.vocabulary import divergences_bytes, embedding_bytes, losses_bytes
from strucprune_core.run.tensor_bytes import TensorBytes
from tests.core.plan.shapes import shape, stream

MODELS = {
    "llama": shape("llama"),
    "capped": shape("gemma2"),
    "opt": shape("opt"),
    "projected": shape("opt", word_embed_proj_dim=128),
    "post_norm": shape("opt", word_embed_proj_dim=128, do_layer_norm_before=False),
}


@pytest.mark.parametrize("tokens", [256, 1000])
@pytest.mark.parametrize(("rows", "chunk"), [(100, 64), (100, 512), (1000, 64), (4096, 512)])
@pytest.mark.parametrize("name", MODELS)
def test_the_ends_take_what_was_planned(name: str, rows: int, chunk: int, tokens: int) -> None:
    config, tiles = MODELS[name], Tiles(vocabulary_rows=rows, head_tokens=chunk)
    model, draw = stream(config, tiles), np.random.default_rng(0)
    hidden = draw.standard_normal((tokens, config.hidden_size), dtype=np.float32)
    # All in the first tile: that is what the plan allows for.
    targets = draw.integers(0, min(100, rows), tokens, dtype=np.int32)
    with torch.inference_mode(), TensorBytes() as counted:
        token_losses(model, hidden, targets)
        losses = counted.take_peak()
        kl_divergences(model, hidden, [hidden, hidden, hidden])
        divergences = counted.take_peak()
        embed(model, targets[None], np.empty((1, tokens, config.hidden_size), dtype=np.float32))
        embedding = counted.take_peak()
    assert losses_bytes(config, tokens, tiles) == pytest.approx(losses, rel=0.05)
    assert divergences_bytes(config, tokens, 3, tiles) == pytest.approx(divergences, rel=0.05)
    assert embedding_bytes(config, tokens, tiles) == pytest.approx(embedding, rel=0.05)
