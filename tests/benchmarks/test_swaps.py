from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.swaps import _costs_and_gains, swap_groups
from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.groups import columns_of
from tests.core.method.exact import random_gram, random_weight

DAMPING = 0.3


def problem_of(seed: int, channels: int = 8) -> LayerProblem:
    return LayerProblem.of(random_gram(channels, seed), random_weight(4, channels, seed), DAMPING)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_costs_and_gains_are_exact_for_one_group(size: int) -> None:
    problem = problem_of(0, 6 * size)
    groups, gone = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    now = problem.error(columns_of(groups, size)) * problem.energy
    costs, gains = _costs_and_gains(problem, groups, gone, size)
    for index, group in enumerate(groups):
        left = columns_of(groups[groups != group], size)
        assert problem.error(left) * problem.energy - now == pytest.approx(float(costs[index]))
    for index, group in enumerate(gone):
        more = columns_of(torch.cat([groups, group[None]]).sort().values, size)
        assert now - problem.error(more) * problem.energy == pytest.approx(float(gains[index]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2]), keep=st.integers(1, 5))
def test_errors_fall(seed: int, size: int, keep: int) -> None:
    problem = problem_of(seed, 6 * size)
    start = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:keep]
    result = swap_groups(problem, start, size)
    assert list(result.errors) == sorted(set(result.errors), reverse=True)
    assert result.errors[-1] == pytest.approx(problem.error(columns_of(result.groups, size)))
    assert result.groups.tolist() == sorted(set(result.groups.tolist()))
    assert len(result.groups) == keep
    assert result.local_optimum


def test_it_mostly_finds_the_optimum_from_anywhere() -> None:
    found = 0
    for seed in range(40):
        problem = problem_of(seed)
        result = swap_groups(problem, torch.arange(4))
        best = min(problem.error(torch.tensor(s)) for s in combinations(range(8), 4))
        found += result.errors[-1] <= best * (1 + 1e-9)
    assert found >= 25


def test_the_optimum_is_left_alone() -> None:
    problem = problem_of(1)
    best = min(combinations(range(8), 4), key=lambda s: problem.error(torch.tensor(s)))
    result = swap_groups(problem, torch.tensor(best))
    assert result.groups.tolist() == list(best)
    assert (result.swapped, len(result.errors)) == (0, 1)


def test_evaluations_are_limited() -> None:
    result = swap_groups(problem_of(2, 40), torch.arange(20), max_evaluations=2)
    assert result.evaluations == 2
    assert not result.local_optimum


@pytest.mark.parametrize("keep", [0, 8])
def test_nothing_to_exchange(keep: int) -> None:
    result = swap_groups(problem_of(3), torch.arange(keep))
    assert result.groups.tolist() == list(range(keep))
    assert result.local_optimum
