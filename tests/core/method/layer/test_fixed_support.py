from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer.damage_curve import HESSIAN_DAMPING
from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.ridge import ridge
from tests.core.method.exact import damped, random_gram, random_weight, support_damage


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.sets(st.integers(0, 7), min_size=1))
def test_the_error_is_the_direct_solves(seed: int, kept: set[int]) -> None:
    gram, weight = random_gram(8, seed), random_weight(3, 8, seed)
    problem = LayerProblem.of(gram, weight, HESSIAN_DAMPING)
    columns = sorted(kept)
    everything = support_damage(damped(gram), weight, [])
    expected = support_damage(damped(gram), weight, columns) / everything
    assert problem.error(torch.tensor(columns)) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("damping", [0.01, 0.3, 3.0])
def test_the_solution_is_the_ridges(damping: float) -> None:
    gram, weight = random_gram(10, 1), random_weight(4, 10, 1)
    kept = torch.tensor([0, 3, 4, 8])
    solution = LayerProblem.of(gram, weight, damping).solution(kept)
    torch.testing.assert_close(solution[:, kept], ridge(gram, weight, kept, damping).weight)
    solution[:, kept] = 0.0
    assert not solution.any()


def test_it_leaves_its_arguments_alone() -> None:
    gram, weight = random_gram(8, 0), random_weight(3, 8, 0)
    copies = gram.clone(), weight.clone()
    LayerProblem.of(gram, weight, 0.3).solution(torch.tensor([1, 2]))
    assert torch.equal(gram, copies[0])
    assert torch.equal(weight, copies[1])


def test_a_layer_that_never_fires() -> None:
    problem = LayerProblem.of(torch.zeros(3, 3), torch.tensor([[1.0, 2.0, 3.0]]), 0.3)
    assert problem.error(torch.tensor([1, 2])) == pytest.approx(1 / 14)
    assert problem.solution(torch.tensor([2])).tolist() == [[0.0, 0.0, 3.0]]


def test_without_weights_every_support_is_perfect() -> None:
    problem = LayerProblem.of(random_gram(4, 0), torch.zeros(2, 4), 0.3)
    assert problem.error(torch.tensor([0])) == 0.0


def test_statistics_that_are_not_finite_are_refused() -> None:
    gram = random_gram(4, 0)
    gram[1, 1] = float("nan")
    with pytest.raises(NumericalFailure):
        LayerProblem.of(gram, torch.ones(2, 4), 0.3)
