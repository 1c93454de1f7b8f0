"""ADMM against brute force over all supports, direct solves, and itself in other units.

Of 60 problems of 8 correlated channels, 4 kept, damping 0.3, OBS one by one finds the optimum of 39
and ADMM ("metric", r = 0.3) started from there that of 55.
"""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer import admm as module
from strucprune_core.method.layer.admm import (
    AdmmOptions,
    AdmmResult,
    AdmmStatus,
    AdmmStep,
    Ranking,
    RhoRule,
    admm,
    choose_support,
)
from strucprune_core.method.layer.damage_curve import damage_curve
from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.groups import columns_of
from strucprune_core.method.layer.ridge import relative_error, ridge
from tests.core.method.exact import random_gram, random_weight

DAMPING = 0.3
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
RULES: tuple[RhoRule, ...] = get_args(RhoRule)
VARIANTS = [
    AdmmOptions(ranking=ranking, rho=rho, rho_rule=rule)
    for ranking in RANKINGS
    for rule in RULES
    for rho in (0.1, 1.0)
]


def problem_of(seed: int, channels: int = 8, rows: int = 4) -> tuple[Tensor, Tensor]:
    return random_gram(channels, seed), random_weight(rows, channels, seed)


def obs_support(gram: Tensor, weight: Tensor, keep: int) -> Tensor:
    order = damage_curve(gram, weight, block=1).order
    return order[len(order) - keep :].sort().values


def best_error(gram: Tensor, weight: Tensor, keep: int, size: int = 1) -> float:
    """The optimum over all supports."""
    problem = LayerProblem.of(gram, weight, DAMPING)
    supports = combinations(range(len(gram) // size), keep)
    return min(problem.error(columns_of(torch.tensor(s), size)) for s in supports)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: f"{o.ranking}-{o.rho_rule}-{o.rho}")
@pytest.mark.parametrize("warm", [True, False])
def test_between_the_optimum_and_the_start(options: AdmmOptions, warm: bool) -> None:
    for seed in range(3):
        gram, weight = problem_of(seed)
        start = obs_support(gram, weight, 4) if warm else None
        result = admm(gram, weight, 4, DAMPING, start=start, options=options)
        problem = LayerProblem.of(gram, weight, DAMPING)
        assert result.objective == pytest.approx(problem.error(result.groups))
        assert result.objective >= best_error(gram, weight, 4) * (1 - 1e-9)
        if start is None:
            assert result.start_objective is None
        else:
            assert result.start_objective == pytest.approx(problem.error(start))
            assert result.objective <= problem.error(start)
        assert result.groups.tolist() == sorted(set(result.groups.tolist()))
        assert result.status is not AdmmStatus.DIVERGED


def test_it_finds_the_optimum_more_often_than_obs() -> None:
    optimal = {"obs": 0, "admm": 0}
    options = AdmmOptions(ranking="metric", rho=0.3)
    for seed in range(60):
        gram, weight = problem_of(seed)
        start = obs_support(gram, weight, 4)
        result = admm(gram, weight, 4, DAMPING, start=start, options=options)
        assert result.start_objective is not None
        best = best_error(gram, weight, 4) * (1 + 1e-9)
        optimal["obs"] += result.start_objective <= best
        optimal["admm"] += result.objective <= best
    assert optimal["obs"] < 45 < optimal["admm"]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    keep=st.integers(1, 8),
    options=st.sampled_from(VARIANTS),
    warm=st.booleans(),
)
def test_never_worse_than_the_start(seed: int, keep: int, options: AdmmOptions, warm: bool) -> None:
    gram, weight = problem_of(seed)
    start = obs_support(gram, weight, keep) if warm else None
    result = admm(gram, weight, keep, DAMPING, start=start, options=options)
    assert len(result.groups) == len(result.last_groups) == keep
    assert 1 <= len(result.trace) <= options.max_iterations
    assert min(step.objective for step in result.trace) >= result.objective - 1e-12
    if result.start_objective is not None:
        assert result.objective <= result.start_objective


@pytest.mark.parametrize("ranking", RANKINGS)
def test_keeping_everything_converges_to_the_dense_weights(ranking: Ranking) -> None:
    gram, weight = problem_of(0)
    options = AdmmOptions(ranking=ranking)
    result = admm(gram, weight, 8, DAMPING, options=options)
    assert result.status is AdmmStatus.CONVERGED
    assert result.objective == pytest.approx(0.0, abs=1e-12)
    assert len(result.trace) == 1


@pytest.mark.parametrize("ranking", RANKINGS)
def test_at_large_rho_a_start_is_a_fixed_point(ranking: Ranking) -> None:
    gram, weight = problem_of(1)
    start = torch.tensor([0, 1, 2, 3])
    options = AdmmOptions(ranking=ranking, rho=100.0)
    result = admm(gram, weight, 4, DAMPING, start=start, options=options)
    assert result.status is AdmmStatus.CONVERGED
    assert len(result.trace) == 1
    assert result.trace[0].primal < 1e-9
    assert result.trace[0].dual < 1e-6
    assert result.last_groups.tolist() == start.tolist()


def test_the_fixed_point_condition_of_the_metric() -> None:
    """A start stays iff min saliency >= max ||gradient_j||^2 [H^-1]_jj / r^2: both sides of it."""
    gram, weight = problem_of(2)
    start = obs_support(gram, weight, 4)
    problem = LayerProblem.of(gram, weight, DAMPING)
    inverse = torch.linalg.inv(problem.hessian)
    optimum = problem.solution(start)
    gradient = (weight - optimum) @ problem.hessian
    gone = [j for j in range(8) if j not in start.tolist()]
    lacking = float((gradient.square().sum(0) * inverse.diagonal())[gone].max())
    losing = float((optimum.square().sum(0) / inverse.diagonal())[start].min())
    rho = (lacking / losing) ** 0.5 / float(
        (problem.hessian.diagonal() * inverse.diagonal()).mean()
    )
    for factor, moves in ((0.99, True), (1.01, False)):
        options = AdmmOptions(ranking="metric", rho=factor * rho, max_iterations=1)
        step = admm(gram, weight, 4, DAMPING, start=start, options=options).trace[0]
        assert (step.changed > 0) is moves


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("rule", ["fixed", "growing"])
def test_residuals_fall_to_zero(ranking: Ranking, rule: RhoRule) -> None:
    gram, weight = problem_of(3)
    options = AdmmOptions(
        ranking=ranking,
        rho=3.0 if rule == "fixed" else 0.5,
        rho_rule=rule,
        max_iterations=400,
        patience=400,
        tolerance=1e-8,
    )
    result = admm(gram, weight, 4, DAMPING, options=options)
    assert result.trace[-1].primal < 1e-6
    assert result.trace[-1].primal < 1e-3 * max(step.primal for step in result.trace)
    if rule == "fixed":  # A growing r freezes Z before it is stationary.
        assert result.status is AdmmStatus.CONVERGED
        assert result.factorisations == 2  # H's own, and one for all iterations.
    else:
        assert [step.rho for step in result.trace[:3]] == pytest.approx([0.5, 0.55, 0.605])


@pytest.mark.parametrize("ranking", RANKINGS)
def test_where_it_converges_z_is_the_direct_solution(ranking: Ranking) -> None:
    gram, weight = problem_of(4)
    options = AdmmOptions(
        ranking=ranking, rho=3.0, tolerance=1e-10, max_iterations=2000, patience=2000
    )
    run = module._Run(LayerProblem.of(gram, weight, DAMPING), 4, 1, 1, options)
    run.begin(None)
    assert run.iterate() is AdmmStatus.CONVERGED
    direct = torch.zeros_like(weight)
    direct[:, run.support] = ridge(gram, weight, run.support, DAMPING).weight
    expected = direct if run._coordinates is None else run._coordinates.scale(direct)
    torch.testing.assert_close(run._z, expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), ranking=st.sampled_from(RANKINGS), warm=st.booleans())
def test_units_do_not_matter(seed: int, ranking: Ranking, warm: bool) -> None:
    gram, weight = problem_of(seed)
    start = obs_support(gram, weight, 4) if warm else None
    options = AdmmOptions(ranking=ranking, rho=0.5, max_iterations=10)
    plain = admm(gram, weight, 4, DAMPING, start=start, options=options)
    # Powers of two change no rounding, so that the traces are equal to the last bit.
    scaled = admm(1024 * gram, weight / 64, 4, DAMPING, start=start, options=options)
    assert plain.groups.tolist() == scaled.groups.tolist()
    assert plain.trace == scaled.trace


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rescaling_the_duals_keeps_the_multipliers(ranking: Ranking) -> None:
    """At the optimum on its support a pair is stationary at every r, if U follows r."""
    gram, weight = problem_of(5)
    options = AdmmOptions(ranking=ranking, rho=50.0, rho_rule="growing", growth=2.0)
    run = module._Run(LayerProblem.of(gram, weight, DAMPING), 4, 1, 1, options)
    run.begin(torch.tensor([1, 2, 5, 7]))
    multipliers = run._rho * run._u
    for _ in range(5):
        assert run._step()
        run._change_rho(run.trace[-1])
        torch.testing.assert_close(run._rho * run._u, multipliers, rtol=1e-7, atol=1e-9)
    assert run._rho == 50.0 * 2**5
    assert max(step.primal for step in run.trace) < 1e-9


@pytest.mark.parametrize(
    ("primal", "dual", "growth"),
    [(1.0, 0.05, 2.0), (0.05, 1.0, 0.5), (1.0, 0.5, 1.0), (0.5, 1.0, 1.0), (0.0, 0.0, 1.0)],
)
def test_balancing(primal: float, dual: float, growth: float) -> None:
    step = AdmmStep(1.0, primal, dual, 0, 0.5)
    assert module._growth(AdmmOptions(rho_rule="balanced"), step) == growth
    assert module._growth(AdmmOptions(rho_rule="fixed"), step) == 1.0
    assert module._growth(AdmmOptions(rho_rule="growing", growth=1.3), step) == 1.3


def test_rho_stays_in_range() -> None:
    gram, weight = problem_of(6)
    options = AdmmOptions(rho_rule="growing", growth=1e9, patience=50, tolerance=0.0)
    trace = admm(gram, weight, 4, DAMPING, options=options).trace
    assert [step.rho for step in trace[:3]] == [1.0, module.RHO_RANGE[1], module.RHO_RANGE[1]]


def test_a_tiny_rho_diverges_and_says_so() -> None:
    gram, weight = problem_of(7)
    start = obs_support(gram, weight, 4)
    options = AdmmOptions(ranking="euclidean", rho=1e-9)
    result = admm(gram, weight, 4, DAMPING, start=start, options=options)
    assert result.status is AdmmStatus.DIVERGED
    assert result.trace == ()
    assert result.groups.tolist() == start.tolist()  # Nothing of the divergence is left.
    assert result.objective == result.start_objective


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_weights_that_are_not_finite_diverge(value: float) -> None:
    gram, weight = problem_of(8)
    weight[1, 2] = value
    assert admm(gram, weight, 4, DAMPING).status is AdmmStatus.DIVERGED


def test_statistics_that_are_not_finite_are_refused() -> None:
    gram, weight = problem_of(9)
    gram[3, 3] = float("nan")
    with pytest.raises(NumericalFailure):
        admm(gram, weight, 4, DAMPING)


def test_a_layer_that_never_fires_keeps_its_largest_columns() -> None:
    weight = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    result = admm(torch.zeros(4, 4), weight, 2, DAMPING)
    assert result.groups.tolist() == [1, 3]


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("size", [2, 3])
def test_groups_of_columns(ranking: Ranking, size: int) -> None:
    for seed in range(4):
        gram, weight = problem_of(seed, channels=6 * size)
        options = AdmmOptions(ranking=ranking, rho=0.5)
        start = torch.tensor([5, 0, 3])
        result = admm(gram, weight, 3, DAMPING, start=start, group_size=size, options=options)
        columns = columns_of(result.groups, size)
        exact = LayerProblem.of(gram, weight, DAMPING).error(columns)
        assert result.objective == pytest.approx(exact)
        assert result.start_objective is not None
        best = best_error(gram, weight, 3, size)
        assert best * (1 - 1e-9) <= result.objective <= result.start_objective


@pytest.mark.parametrize("ranking", ["saliency", "metric"])
def test_independent_channels_are_ranked_exactly(ranking: Ranking) -> None:
    """With a diagonal G the best support is known: the largest ||W_j||^2 H_jj."""
    for seed in range(5):
        energies = random_weight(1, 8, seed).square().flatten()
        gram, weight = torch.diag(energies), random_weight(3, 8, seed + 50)
        worth = weight.square().sum(0) * (energies + DAMPING * energies.mean())
        best = worth.topk(4).indices.sort().values.tolist()
        result = admm(gram, weight, 4, DAMPING, options=AdmmOptions(ranking=ranking))
        assert result.groups.tolist() == best


@pytest.mark.parametrize(
    ("keep", "start", "size"), [(0, None, 1), (9, None, 1), (4, [0, 1], 1), (2, None, 3)]
)
def test_shapes_that_do_not_fit(keep: int, start: list[int] | None, size: int) -> None:
    gram, weight = problem_of(0)
    first = None if start is None else torch.tensor(start)
    with pytest.raises(ValueError, match="group"):
        admm(gram, weight, keep, DAMPING, start=first, group_size=size)


def test_the_same_bits_every_time_and_arguments_left_alone() -> None:
    gram, weight = problem_of(10)
    copies = gram.clone(), weight.clone()
    first, second = admm(gram, weight, 4, DAMPING), admm(gram, weight, 4, DAMPING)
    assert same(first, second)
    assert torch.equal(gram, copies[0])
    assert torch.equal(weight, copies[1])


def same(a: AdmmResult, b: AdmmResult) -> bool:
    return a.trace == b.trace and torch.equal(a.groups, b.groups) and a.status is b.status


@pytest.fixture(scope="module")
def supports() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gram, weight = problem_of(11)
    holdout = random_weight(40, 8, 3) @ torch.linalg.cholesky(gram).T
    return gram, weight, holdout, torch.tensor([0, 1, 2, 3]), torch.tensor([2, 4, 5, 7])


def test_the_support_with_the_lower_held_out_error_is_taken(
    supports: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    gram, weight, holdout, one, other = supports
    found = [
        relative_error(holdout, weight, ridge(gram, weight, kept, DAMPING).weight, kept)
        for kept in (one, other)
    ]
    errors = [error for error in found if error is not None]
    worse, better = (one, other) if errors[1] < errors[0] else (other, one)
    choice = choose_support(gram, weight, worse, better, DAMPING, holdout)
    assert choice.taken == "candidate"
    assert torch.equal(choice.kept, better)
    assert (choice.candidate_error, choice.baseline_error) == pytest.approx(sorted(errors))
    choice = choose_support(gram, weight, better, worse, DAMPING, holdout)
    assert choice.taken == "baseline"
    assert torch.equal(choice.kept, better)
    torch.testing.assert_close(choice.solution.weight, ridge(gram, weight, better, DAMPING).weight)


def test_without_held_out_tokens_the_baseline_stays(
    supports: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    gram, weight, holdout, one, other = supports
    for baseline, candidate in ((one, other), (other, one)):
        choice = choose_support(gram, weight, baseline, candidate, DAMPING, holdout[:0])
        assert (choice.taken, choice.baseline_error, choice.candidate_error) == (
            "baseline",
            None,
            None,
        )
        assert torch.equal(choice.kept, baseline)


def test_of_equal_supports_the_baseline_is_taken(
    supports: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    gram, weight, holdout, one, _ = supports
    choice = choose_support(
        gram.float(), weight.float(), one, one.clone(), DAMPING, holdout.float()
    )
    assert choice.taken == "baseline"
    assert choice.baseline_error == choice.candidate_error


@pytest.mark.parametrize("ranking", RANKINGS)
def test_families_in_lockstep_against_brute_force(ranking: Ranking) -> None:
    """Three families of two groups of two columns; one group of each is kept."""
    found = 0
    for seed in range(10):
        gram, weight = problem_of(seed, 12)
        problem = LayerProblem.of(gram, weight, DAMPING)
        supports = [torch.tensor([a, 2 + b, 4 + c]) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        errors = [problem.error(columns_of(support, 2)) for support in supports]
        start = torch.tensor([0, 2, 4])
        options = AdmmOptions(ranking=ranking)
        result = admm(
            gram, weight, 3, DAMPING, start=start, group_size=2, lockstep=3, options=options
        )
        assert (result.groups // 2).tolist() == [0, 1, 2]
        assert min(errors) - 1e-12 <= result.objective <= errors[0] + 1e-12
        found += result.objective <= min(errors) + 1e-12
    assert found >= 3
    with pytest.raises(ValueError, match="equally many"):
        admm(gram, weight, 2, DAMPING, group_size=2, lockstep=3)
