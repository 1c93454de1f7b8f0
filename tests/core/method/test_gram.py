from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strucprune_core.method.gram import (
    LEAST_MEAN_SQUARE,
    GramAccumulator,
    assumed_energy,
    token_weights,
)
from strucprune_core.method.linalg.matrices import DeviceMatrix, Room
from strucprune_core.method.site_statistics import SiteStatistics


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


def accumulated(rows: torch.Tensor, assumed: float = 0.0) -> tuple[torch.Tensor, float | None]:
    """G of tokens of weight one, with its effective rank."""
    grams = GramAccumulator(rows.shape[1], Room(torch.device("cpu")))
    grams.add(rows, torch.ones(len(rows)))
    into = DeviceMatrix(torch.empty(rows.shape[1], rows.shape[1]))
    rank = grams.finish(float(len(rows)), into, assumed)
    return into.tensor, rank


def test_the_effective_rank_counts_directions_whatever_their_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 3, 200)
    free = torch.randn(20_000, 200, generator=draw) * scales
    assert accumulated(free)[1] == pytest.approx(200, rel=0.02)
    moved = free + 100 * scales  # By a constant, which says nothing of the tokens.
    assert accumulated(moved[:, :100])[1] == pytest.approx(0.0)  # It is all but constant.
    assert accumulated(free + 3 * scales)[1] == pytest.approx(200, rel=0.02)
    assert accumulated(torch.ones(50, 200) * scales)[1] == 0.0
    one = torch.randn(50, 1, generator=draw) * scales
    assert accumulated(one)[1] == pytest.approx(1.0, rel=1e-4)
    three = torch.randn(20_000, 3, generator=draw) @ torch.eye(3).repeat(1, 66)
    assert accumulated(three)[1] == pytest.approx(3.0, rel=0.01)
    assert accumulated(torch.zeros(5, 200))[1] is None
    dead = torch.cat([free[:, :10], torch.zeros(20_000, 90)], dim=1)
    assert accumulated(dead)[1] == pytest.approx(10, rel=0.02)


def test_what_is_assumed_is_on_the_diagonal_and_not_in_the_rank() -> None:
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    measured, rank = accumulated(rows)
    given, same_rank = accumulated(rows, assumed=0.5)
    assert torch.allclose(given - measured, 0.5 * torch.eye(9), atol=1e-6)
    assert same_rank == rank


def test_the_assumed_energy_goes_as_tokens_come() -> None:
    found = [assumed_energy(tokens, 10, 2.0) for tokens in (0, 5, 9, 10, 1000)]
    assert found == pytest.approx([2.0, 1.0, 0.2, 0.0, 0.0])
    assert SiteStatistics(0, 10, 0.0, 2.0, 0.0).measured_share == 0.0
    assert SiteStatistics(5, 10, 3.0, 1.0, 1.0).measured_share == 0.75
    assert SiteStatistics(10, 10, 0.0, 0.0, 0.0).measured_share == 1.0
