from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import (
    WidthRule,
    parameters_to_remove,
)
from strucprune_core.method.allocation.threshold import allocate_by_threshold
from tests.core.method.allocation.problems import (
    Problem,
    convex_curves,
    is_nearest,
    problems,
    reachable,
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sparsity", [0.01, 0.25, 0.5, 0.65])
@pytest.mark.parametrize(("widths", "multiple"), [([6, 5, 7], 1), ([12, 8, 16], 4), ([9, 9], 3)])
def test_no_other_widths_do_less_damage(
    widths: list[int], multiple: int, sparsity: float, seed: int
) -> None:
    energies = np.random.default_rng(seed).lognormal(0, 1, size=len(widths)).tolist()
    problem = Problem(convex_curves(widths, seed), energies, sparsity, WidthRule(0.1, multiple))
    choices = itertools.product(*(problem.rule.widths(width) for width in widths))
    found = problem.widths()
    removed = sum(widths) - sum(found)
    best = min(
        problem.damage(choice)
        for choice in choices
        if sum(widths) - sum(choice) >= min(removed, problem.budget)
    )
    assert problem.damage(found) == pytest.approx(best, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_budget_is_met_to_within_one_step(problem: Problem) -> None:
    if not reachable(problem):
        with pytest.raises(InvalidSpec):
            problem.widths()
        return
    widths = problem.widths()
    removed = sum(problem.dense) - sum(widths)
    budget = parameters_to_remove(problem.sparsity, problem.dense, [30] * len(problem.dense))
    assert is_nearest(30 * removed, budget, 30 * problem.rule.multiple_of)
    for dense, width in zip(problem.dense, widths, strict=True):
        assert problem.rule.floor(dense) <= width <= dense
        assert width == dense or width % problem.rule.multiple_of == 0


@settings(max_examples=80, deadline=None)
@given(problems(), st.floats(0.0, 1.0))
def test_more_sparsity_never_widens_a_layer(problem: Problem, share: float) -> None:
    if not reachable(problem):
        return
    lower = problem.sparsity * share
    if lower == 0.0:
        return
    for less, more in zip(problem.widths(lower), problem.widths(), strict=True):
        assert more <= less


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(0, 10**6))
def test_layers_may_come_in_any_order(problem: Problem, seed: int) -> None:
    if not reachable(problem):
        return
    order = np.random.default_rng(seed).permutation(len(problem.damages))
    shuffled = Problem(
        [problem.damages[i] for i in order],
        [problem.energies[i] for i in order],
        problem.sparsity,
        problem.rule,
    )
    widths = problem.widths()
    assert shuffled.widths() == tuple(widths[i] for i in order)


@pytest.mark.parametrize("sparsity", [0.01, 0.9])
@pytest.mark.parametrize("multiple", [1, 64])
def test_extreme_budgets(sparsity: float, multiple: int) -> None:
    widths = [1536] * 30
    problem = Problem(convex_curves(widths, 0), [1.0] * 30, sparsity, WidthRule(0.05, multiple))
    found = problem.widths()
    removed = sum(widths) - sum(found)
    assert is_nearest(removed, problem.budget, multiple)
    assert min(found) >= problem.rule.floor(1536)


def test_a_layer_with_higher_energy_keeps_more() -> None:
    curve = np.linspace(1.0, 10.0, 50)
    equal = Problem([curve, curve], [1.0, 1.0], 0.4, WidthRule(0.1, 1)).widths()
    scaled = Problem([curve, curve], [1.0, 3.0], 0.4, WidthRule(0.1, 1)).widths()
    assert abs(equal[0] - equal[1]) <= 1
    assert scaled[0] < equal[0]
    assert scaled[1] > equal[1]


def test_dead_channels_go_before_all_others() -> None:
    damages = [np.full(10, 5.0), np.array([0.0] * 4 + [1.0] * 6)]
    problem = Problem(damages, [1.0, 100.0], 0.2, WidthRule(0.1, 1))
    assert problem.widths() == (10, 6)


def test_the_price_is_that_of_the_last_step() -> None:
    damages = [np.array([1.0, 4.0, 9.0, 16.0]), np.array([2.0, 3.0, 5.0, 8.0])]
    found = allocate_by_threshold(damages, [1.0, 1.0], 0.5, [WidthRule(0.1, 1)] * 2, [10, 10])
    assert found.widths == (2, 2)  # 1, 2, 3, 4 go
    assert found.price == pytest.approx(0.4)


def test_ties_go_to_the_earlier_layer() -> None:
    damages = [np.ones(10), np.ones(10)]
    assert Problem(damages, [1.0, 1.0], 0.3, WidthRule(0.1, 1)).widths() == (4, 10)


def test_out_of_reach_names_the_field() -> None:
    problem = Problem([np.ones(10), np.ones(20)], [1.0, 1.0], 0.95, WidthRule(0.1, 1))
    with pytest.raises(InvalidSpec, match=r"0\.95 is out of reach.*0\.9") as caught:
        problem.widths()
    assert caught.value.field == "pruning.sparsity"
    assert caught.value.remedy


def test_the_reach_itself_is_allowed() -> None:
    problem = Problem([np.ones(10), np.ones(20)], [1.0, 1.0], 0.9, WidthRule(0.1, 1))
    assert problem.widths() == (1, 2)


def test_sites_of_different_size_share_one_price_per_parameter() -> None:
    # A head of 100 parameters at damage 50 costs 0.5 each; channels of 10 cost 0.1, 0.4, 0.9.
    damages = [np.array([50.0, 80.0]), np.array([1.0, 4.0, 9.0, 16.0])]
    rules = [WidthRule(0.5, 1), WidthRule(0.1, 1)]
    found = allocate_by_threshold(damages, [1.0, 1.0], 0.5, rules, [100, 10])
    assert found.widths == (1, 2)  # 0.1, 0.4 and 0.5 go: 120 of 240 parameters
    assert found.price == pytest.approx(0.5)
