from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer.ridge import (
    DAMPING_RANGE,
    REFERENCE_DAMPING,
    REFERENCE_TOKENS,
    default_damping,
    relative_error,
    ridge,
)
from tests.core.method.exact import random_gram, random_weight

KEPT = torch.tensor([0, 2, 3, 7, 9])


def by_least_squares(gram: Tensor, weight: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The ridge as plain least squares on the augmented system [R_K; sqrt(g) I] W_K^T."""
    root = torch.linalg.cholesky(gram).T
    anchor = (damping * gram.diagonal().mean()).sqrt()
    design = torch.cat([root[:, kept], anchor * torch.eye(len(kept)).double()])
    target = torch.cat([root @ weight.T, anchor * weight[:, kept].T])
    solution: Tensor = torch.linalg.lstsq(design, target).solution
    return solution.T


@pytest.mark.parametrize("damping", [1e-4, 0.03, 0.3, 3.0, 100.0])
def test_against_least_squares(damping: float) -> None:
    gram, weight = random_gram(10, 0), random_weight(4, 10, 0)
    solution = ridge(gram, weight, KEPT, damping)
    torch.testing.assert_close(solution.weight, by_least_squares(gram, weight, KEPT, damping))
    assert solution.damping == pytest.approx(damping)
    assert solution.retries == 0


def test_against_the_normal_equations() -> None:
    gram, weight = random_gram(10, 1), random_weight(4, 10, 1)
    g = 0.3 * gram.diagonal().mean()
    left = gram[KEPT][:, KEPT] + g * torch.eye(len(KEPT)).double()
    right = weight @ gram[:, KEPT] + g * weight[:, KEPT]
    expected = torch.linalg.solve(left.T, right.T).T
    torch.testing.assert_close(ridge(gram, weight, KEPT, 0.3).weight, expected)


def test_float32_arguments_are_computed_on_in_float64() -> None:
    gram, weight = random_gram(10, 2).float(), random_weight(4, 10, 2).float()
    solution = ridge(gram, weight, KEPT, 0.1).weight
    assert solution.dtype == torch.float64
    exact = by_least_squares(gram.double(), weight.double(), KEPT, 0.1)
    torch.testing.assert_close(solution, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damping", [1e-3, 0.3, 10.0])
def test_keeping_all_channels_changes_nothing(damping: float) -> None:
    gram, weight = random_gram(10, 3), random_weight(4, 10, 3)
    solution = ridge(gram, weight, torch.arange(10), damping)
    torch.testing.assert_close(solution.weight, weight, rtol=1e-9, atol=1e-9)


def test_strong_damping_keeps_the_dense_weights() -> None:
    gram, weight = random_gram(10, 4), random_weight(4, 10, 4)
    distances = [
        float((ridge(gram, weight, KEPT, damping).weight - weight[:, KEPT]).norm())
        for damping in (1e2, 1e5, 1e9)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6


def test_weak_damping_minimises_the_error() -> None:
    gram, weight = random_gram(10, 5), random_weight(4, 10, 5)

    def error(pruned: Tensor) -> float:
        difference = -weight.clone()
        difference[:, KEPT] += pruned
        return float((difference @ gram * difference).sum())

    best = ridge(gram, weight, KEPT, 1e-12).weight
    assert error(best) < error(weight[:, KEPT])
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = torch.randn(best.shape, generator=draw, dtype=torch.float64)
        assert error(best) <= error(best + 1e-3 * noise)


def test_a_layer_that_never_fires_keeps_its_weights() -> None:
    weight = random_weight(4, 10, 6).float()
    solution = ridge(torch.zeros(10, 10), weight, KEPT, 0.3)
    assert torch.equal(solution.weight, weight[:, KEPT].double())
    assert (solution.damping, solution.retries) == (0.3, 0)


def test_a_raised_ridge_is_reported() -> None:
    # Indefinite by a little: the ridge must grow tenfold before it factorises.
    gram = torch.eye(4).double()
    gram[0, 1] = gram[1, 0] = 1.05
    solution = ridge(gram, random_weight(2, 4, 0), torch.tensor([0, 1]), 0.01)
    assert solution.retries == 1
    assert solution.damping == pytest.approx(0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    gram = random_gram(10, 7)
    gram[3, 3] = value
    with pytest.raises(NumericalFailure):
        ridge(gram, random_weight(4, 10, 7), KEPT, 0.3)


def test_the_remedy_of_a_hopeless_matrix_names_the_damping() -> None:
    gram = torch.eye(8, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 1e9
    with pytest.raises(NumericalFailure, match="not positive definite") as caught:
        ridge(gram, random_weight(3, 8, 0), torch.arange(4), 0.3)
    assert "pruning.damping" in str(caught.value.remedy)


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = random_weight(4, 10, 8)
    weight[0, 1] = float("nan")
    with pytest.raises(NumericalFailure, match="not finite"):
        ridge(random_gram(10, 8), weight, KEPT, 0.3)


def test_relative_error_by_hand() -> None:
    activations = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    dense = torch.tensor([[2.0, 1.0]])
    # Wanted 4 and 6; channel 1 gone, and the other's weight 1: got 1 and 3.
    got = relative_error(activations, dense, torch.tensor([[1.0]]), torch.tensor([0]))
    assert got == pytest.approx((3.0**2 + 3.0**2) / (4.0**2 + 6.0**2))


def test_relative_error_of_the_dense_weights_is_zero() -> None:
    activations, dense = random_gram(6, 9), random_weight(3, 6, 9)
    assert relative_error(activations, dense, dense, torch.arange(6)) == 0.0


def test_relative_error_without_any_output_is_zero() -> None:
    kept = torch.tensor([1])
    assert relative_error(torch.zeros(5, 2), torch.ones(3, 2), torch.ones(3, 1), kept) == 0.0


def test_default_damping() -> None:
    assert default_damping(REFERENCE_TOKENS) == REFERENCE_DAMPING
    assert default_damping(REFERENCE_TOKENS // 2) == pytest.approx(2 * REFERENCE_DAMPING)
    assert default_damping(1) == DAMPING_RANGE[1] == 3.0
    assert default_damping(10**9) == DAMPING_RANGE[0] == 0.03
    rates = [default_damping(tokens) for tokens in range(1, 10**6, 997)]
    assert rates == sorted(rates, reverse=True)


def test_relative_error_over_no_tokens_is_unknown() -> None:
    kept = torch.tensor([0])
    assert relative_error(torch.zeros(0, 2), torch.ones(3, 2), torch.ones(3, 1), kept) is None


def test_relative_error_beside_no_output_is_unknown() -> None:
    seen, dense = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    assert relative_error(seen, dense, torch.tensor([[1.0]]), torch.tensor([0])) is None
