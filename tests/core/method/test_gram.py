from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strucprune_core.method.gram import (
    LEAST_MEAN_SQUARE,
    GramAccumulator,
    token_weights,
)
from strucprune_core.method.linalg.matrices import Room


def random_tokens(tokens: int, seed: int, width: int = 9, hidden: int = 5) -> tuple[Tensor, Tensor]:
    """FFN activations and the layer's outputs, with one massive token."""
    draw = torch.Generator().manual_seed(seed)
    activations = torch.randn(tokens, width, generator=draw)
    outputs = torch.randn(tokens, hidden, generator=draw)
    activations[0] *= 100
    outputs[0] *= 200
    return activations, outputs


def direct_gram(activations: Tensor, outputs: Tensor) -> Tensor:
    """sum_t w_t a_t a_t^T / sum_t w_t, one token at a time in float64."""
    total, weights = torch.zeros(activations.shape[1], activations.shape[1]).double(), 0.0
    for a, x in zip(activations.double(), outputs.double(), strict=True):
        weight = 1.0 / float((x * x).mean())
        total += weight * torch.outer(a, a)
        weights += weight
    return total / weights


@pytest.mark.parametrize("splits", [[200], [1, 199], [64, 64, 72], [200, 0]])
def test_the_gram_is_a_direct_sum(splits: list[int]) -> None:
    activations, outputs = random_tokens(200, 0)
    grams = GramAccumulator(9, Room(torch.device("cpu")))
    for a, x in zip(torch.split(activations, splits), torch.split(outputs, splits), strict=True):
        grams.add(a, token_weights(x))
    found = grams.gram(float(token_weights(outputs).sum()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), direct_gram(activations, outputs), rtol=1e-5, atol=1e-6
    )


def test_weights_are_inverse_energies() -> None:
    outputs = torch.tensor([[1.0, 1.0], [2.0, 0.0], [30.0, 40.0]])
    assert token_weights(outputs).tolist() == pytest.approx([1.0, 0.5, 1 / 1250])


def test_half_precision_is_summed_in_float32() -> None:
    activations, outputs = random_tokens(300, 1)
    halves = activations.bfloat16(), outputs.bfloat16()
    grams = GramAccumulator(9, Room(torch.device("cpu")))
    weights = token_weights(halves[1])
    grams.add(halves[0], weights)
    torch.testing.assert_close(
        grams.gram(float(weights.sum())).double(),
        direct_gram(halves[0].float(), halves[1].float()),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_token_without_output_has_a_finite_weight() -> None:
    assert token_weights(torch.zeros(1, 4)).tolist() == pytest.approx([1 / LEAST_MEAN_SQUARE])


def test_a_massive_token_does_not_own_the_statistics() -> None:
    activations, outputs = random_tokens(400, 3)
    grams = GramAccumulator(9, Room(torch.device("cpu")))
    weights = token_weights(outputs)
    grams.add(activations, weights)
    rest = direct_gram(activations[1:], outputs[1:])
    weighted = float(grams.gram(float(weights.sum())).diagonal().sum() / rest.diagonal().sum())
    raw = float(activations.square().sum() / activations[1:].square().sum())
    assert weighted == pytest.approx(1.0, abs=0.1)
    assert raw > 10
