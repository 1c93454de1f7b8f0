from __future__ import annotations

import pytest
import torch

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.linalg.factorisation import MAX_RETRIES, RIDGE_GROWTH, factorise
from tests.core.method.exact import random_gram


def test_a_good_matrix_needs_no_retry() -> None:
    gram = random_gram(10, 0)
    before = gram.clone()
    factor = factorise(gram, 0.5)
    assert (factor.ridge, factor.retries) == (0.5, 0)
    expected = gram + 0.5 * torch.eye(10).double()
    torch.testing.assert_close(factor.lower @ factor.lower.T, expected)
    assert torch.equal(gram, before)


@pytest.mark.parametrize(("lowest", "retries"), [(-0.05, 1), (-0.5, 2), (-5.0, 3)])
def test_retries_are_counted(lowest: float, retries: int) -> None:
    gram = torch.diag(torch.tensor([1.0, 2.0, lowest], dtype=torch.float64))
    factor = factorise(gram, 0.01)
    assert factor.retries == retries
    assert factor.ridge == pytest.approx(0.01 * RIDGE_GROWTH**retries)
    expected = gram + factor.ridge * torch.eye(3).double()
    torch.testing.assert_close(factor.lower @ factor.lower.T, expected)


def test_an_indefinite_matrix_is_refused() -> None:
    lowest = -2.0 * 0.01 * RIDGE_GROWTH**MAX_RETRIES
    gram = torch.diag(torch.tensor([1.0, lowest], dtype=torch.float64))
    with pytest.raises(NumericalFailure, match="not positive definite") as caught:
        factorise(gram, 0.01)
    assert caught.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [(0, 0), (1, 2)])
def test_a_matrix_that_is_not_finite_is_refused(value: float, where: tuple[int, int]) -> None:
    gram = random_gram(4, 0)
    gram[where] = gram[where[::-1]] = value
    with pytest.raises(NumericalFailure):
        factorise(gram, 0.01)
