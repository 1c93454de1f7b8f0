"""Gradients of the streamed model against autograd of the real transformers classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.models.backward import backward_layer
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import token_losses
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.gradients import all_states, backward, run_from
from tests.core.models.reference import (
    random_tokens,
    reference_gradients,
    stream_of,
)

Rows = NDArray[np.float32]


TILES = Tiles(vocabulary_rows=100, head_tokens=20)


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_gradients_are_those_of_the_whole_model(tmp_path: Path, variant: str) -> None:
    model, tokens = random_model(variant), random_tokens(2, 24, 512)
    found = backward(replace(stream_of(model, tmp_path / "model"), tiles=TILES), tokens)
    expected = reference_gradients(model, tokens)
    for layer, gradients in enumerate(found):
        parts: dict[str, Tensor] = {"input": gradients.at_input}
        parts |= {str(kind): each for kind, each in gradients.at_outputs}
        assert set(parts) == {"input", "attention", "ffn"}
        for name, gradient in parts.items():
            reference = expected[layer, name]
            error = float((gradient - reference).norm() / reference.norm())
            assert error < 1e-4, (layer, name)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "opt-350m", "mixtral"])
def test_gradients_are_slopes_of_the_loss(tmp_path: Path, variant: str) -> None:
    stream = replace(stream_of(random_model(variant), tmp_path), tiles=TILES)
    tokens = random_tokens(2, 24, 512)
    states, gradients = all_states(stream, tokens), backward(stream, tokens)

    def loss(layer: int, change: Rows) -> float:
        last = run_from(stream, layer, states[layer] + change)[-1][:, :-1]
        flat = last.reshape(-1, last.shape[-1])
        return float(token_losses(stream, flat, tokens[:, 1:].reshape(-1)).sum())

    for layer in (0, 2):
        gradient = gradients[layer].at_input.numpy()
        size = float(np.linalg.norm(gradient))
        step = gradient * np.float32(1e-2 / size)
        slope = (loss(layer, step) - loss(layer, -step)) / 2e-2
        assert slope == pytest.approx(size, rel=1e-2)


def test_gradients_do_not_depend_on_how_the_mode_was_before(tmp_path: Path) -> None:
    """Rotary tables are kept from the forward pass, which runs in inference mode."""
    stream, tokens = stream_of(random_model("llama"), tmp_path), random_tokens(1, 29, 512)
    weights = stream.layer(1)
    with torch.inference_mode():
        states = all_states(stream, tokens)
        found = backward_layer(stream, 1, weights, states[1], np.ones_like(states[1]))
    assert torch.isfinite(found.at_input).all()
