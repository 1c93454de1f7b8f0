from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.method.layer.groups import (
    SaliencyMetric,
    columns_of,
    largest_groups,
    restricted,
)
from tests.core.method.exact import damped, random_gram, random_weight

SHAPES = [(6, 1), (6, 2), (12, 3), (8, 8)]


def test_columns_of_groups() -> None:
    assert columns_of(torch.tensor([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]
    assert columns_of(torch.tensor([2, 0]), 1).tolist() == [2, 0]


def test_restricted_is_a_copy_with_zeros() -> None:
    matrix = torch.arange(1.0, 9.0).view(2, 4)
    assert restricted(matrix, torch.tensor([1]), 2).tolist() == [[0, 0, 3, 4], [0, 0, 7, 8]]
    assert matrix[0, 0] == 1.0


def test_the_largest_groups_by_norm_ascending() -> None:
    matrix = torch.tensor([[1.0, 1.0, 3.0, 0.0, -2.0, 2.0]])
    assert largest_groups(matrix, 2, 2).tolist() == [1, 2]  # Norms^2 are 2, 9 and 8.
    assert largest_groups(matrix, 1, 1).tolist() == [2]


def test_equally_many_of_each_family() -> None:
    matrix = torch.tensor([[5.0, 4.0, 3.0, 1.0, 2.0, 0.0]])
    assert largest_groups(matrix, 2, 1).tolist() == [0, 1]
    assert largest_groups(matrix, 2, 1, lockstep=2).tolist() == [0, 4]
    assert largest_groups(matrix, 3, 1, lockstep=3).tolist() == [0, 2, 4]


def test_of_equal_groups_the_first_are_taken() -> None:
    assert largest_groups(torch.ones(3, 40), 5, 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_norms_in_the_metric_are_saliencies(channels: int, size: int) -> None:
    hessian = damped(random_gram(channels, 0))
    weight = random_weight(3, channels, 0)
    scaled = SaliencyMetric.of(torch.linalg.cholesky(hessian), size).scale(weight)
    inverse = torch.linalg.inv(hessian)
    for group in range(channels // size):
        s = columns_of(torch.tensor([group]), size)
        saliency = weight[:, s] @ torch.linalg.inv(inverse[s][:, s]) @ weight[:, s].T
        assert float(scaled[:, s].square().sum()) == pytest.approx(float(saliency.trace()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES))
def test_the_metric_changes_coordinates_not_errors(seed: int, shape: tuple[int, int]) -> None:
    channels, size = shape
    hessian = damped(random_gram(channels, seed))
    weight = random_weight(3, channels, seed)
    metric = SaliencyMetric.of(torch.linalg.cholesky(hessian), size)
    scaled, transformed = metric.scale(weight), metric.transform(hessian)
    torch.testing.assert_close(scaled @ transformed @ scaled.T, weight @ hessian @ weight.T)
    torch.testing.assert_close(transformed, transformed.T)
