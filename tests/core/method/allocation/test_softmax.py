from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import WidthRule, parameters_to_remove
from strucprune_core.method.allocation.softmax import (
    TEMPERATURES,
    SoftmaxAllocation,
    allocate_by_softmax,
    sparsities,
)
from tests.core.method.allocation.problems import (
    Problem,
    convex_curves,
    is_nearest,
    problems,
    reachable,
)


def solve(
    problem: Problem, sparsity: float | None = None, temperature: float | None = None
) -> SoftmaxAllocation:
    count = len(problem.damages)
    return allocate_by_softmax(
        problem.damages,
        problem.energies,
        problem.sparsity if sparsity is None else sparsity,
        [problem.rule] * count,
        [30] * count,
        temperature,
    )


@pytest.mark.parametrize("power", [1.2, 1.41, 2.0, 3.0])
def test_power_laws_end_at_equal_marginal_damage(power: float) -> None:
    """With D = e rho^p and T = p - 1 the rule is the exact optimum of the continuous problem."""
    scales = np.array([0.3, 1.0, 4.0, 9.0])
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    rho = sparsities(np.log(scales / shares), power - 1, np.ones(4), shares, 0.1)
    assert shares @ rho == pytest.approx(0.1, rel=1e-9)
    marginal = power * scales * rho ** (power - 1) / shares
    assert np.ptp(marginal) / marginal.mean() < 1e-6


def test_capped_sites_hand_their_share_to_the_others() -> None:
    levels, shares = np.log(np.array([1e-9, 1.0, 1.0])), np.full(3, 1 / 3)
    rho = sparsities(levels, 0.5, np.array([0.5, 0.9, 0.9]), shares, 0.4)
    assert rho.tolist() == pytest.approx([0.5, 0.35, 0.35])


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from([None, 0.05, 1.0, 20.0]))
def test_the_budget_is_met_to_within_one_step(problem: Problem, temperature: float | None) -> None:
    if not reachable(problem):
        with pytest.raises(InvalidSpec):
            solve(problem)
        return
    widths = solve(problem, temperature=temperature).widths
    removed = 30 * (sum(problem.dense) - sum(widths))
    budget = parameters_to_remove(problem.sparsity, problem.dense, [30] * len(problem.dense))
    # Each site is rounded to a step of its own; the last one taken may overshoot by one.
    assert is_nearest(removed, budget, 30 * problem.rule.multiple_of)
    for dense, width in zip(problem.dense, widths, strict=True):
        assert width in problem.rule.widths(dense)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 10**6))
def test_sites_may_come_in_any_order(problem: Problem, temperature: float, seed: int) -> None:
    """But for which of several sites that stand equal takes a step more."""
    if not reachable(problem):
        return
    order = np.random.default_rng(seed).permutation(len(problem.damages))
    shuffled = Problem(
        [problem.damages[i] for i in order],
        [problem.energies[i] for i in order],
        problem.sparsity,
        problem.rule,
    )
    found = np.array(solve(problem, temperature=temperature).widths)[order]
    other = np.array(solve(shuffled, temperature=temperature).widths)
    steps = [np.diff(sorted(problem.rule.widths(dense))) for dense in shuffled.dense]
    largest = np.array([max(step, default=0) for step in steps])
    assert (abs(found - other) <= largest).all()
    assert abs(found.sum() - other.sum()) <= largest.max()


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.9])
def test_more_energy_keeps_more_and_heat_evens_out(sparsity: float) -> None:
    curve = np.linspace(1.0, 10.0, 200)
    problem = Problem([curve] * 3, [1.0, 2.0, 4.0], sparsity, WidthRule(0.05, 1))
    cold, warm = (solve(problem, temperature=t).widths for t in (0.3, 20.0))
    assert list(cold) == sorted(cold)
    assert max(warm) - min(warm) <= max(cold) - min(cold)


def test_auto_is_the_best_of_the_temperatures() -> None:
    problem = Problem(convex_curves([40, 60, 50], 3), [1.0, 3.0, 0.2], 0.4, WidthRule(0.1, 1))
    damages = [solve(problem, temperature=t).predicted_damage for t in TEMPERATURES]
    found = solve(problem)
    assert found.predicted_damage == min(damages)
    assert found.temperature == TEMPERATURES[int(np.argmin(damages))]
    assert found.predicted_damage >= problem.damage(problem.widths()) - 1e-9
