from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer import damage_curve as module
from strucprune_core.method.layer.damage_curve import damage_curve
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.method.linalg.factorisation import MAX_RETRIES, RIDGE_GROWTH
from tests.core.method.exact import (
    damped,
    marginal_damages,
    random_gram,
    random_weight,
    support_damage,
)

TINY = [(f, d, seed) for f in (6, 7, 8) for d in (1, 4) for seed in range(4)]


@pytest.mark.parametrize(("channels", "rows", "seed"), TINY)
def test_the_first_removal_is_the_best_single_one(channels: int, rows: int, seed: int) -> None:
    gram, weight = random_gram(channels, seed), random_weight(rows, channels, seed)
    everything = list(range(channels))
    damages = [
        support_damage(damped(gram), weight, [j for j in everything if j != gone])
        for gone in everything
    ]
    curve = damage_curve(gram, weight, block=1)
    assert int(curve.order[0]) == min(everything, key=damages.__getitem__)
    assert float(curve.damage[0]) == pytest.approx(min(damages), rel=1e-8)


@pytest.mark.parametrize(("channels", "rows", "seed"), TINY)
def test_every_removal_is_the_best_next_one(channels: int, rows: int, seed: int) -> None:
    gram, weight = random_gram(channels, seed), random_weight(rows, channels, seed)
    order = damage_curve(gram, weight, block=1).order.tolist()
    for position in range(channels):
        left = order[position:]
        damages = {
            gone: support_damage(damped(gram), weight, [j for j in left if j != gone])
            for gone in left
        }
        assert damages[order[position]] == pytest.approx(min(damages.values()), rel=1e-8)


@pytest.mark.parametrize(("channels", "rows", "seed"), TINY)
def test_damage_is_the_running_maximum_of_exact_increases(
    channels: int, rows: int, seed: int
) -> None:
    gram, weight = random_gram(channels, seed), random_weight(rows, channels, seed)
    curve = damage_curve(gram, weight, block=1)
    exact = marginal_damages(damped(gram), weight, curve.order.tolist())
    torch.testing.assert_close(curve.damage, exact.cummax(0).values, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("channels", "block"), [(8, 2), (8, 3), (8, 16), (40, 1), (168, 16)])
def test_a_block_shares_its_exact_increase_evenly(channels: int, block: int) -> None:
    # The last two have more than COMPACT_EVERY blocks: the working matrices are compacted.
    gram, weight = random_gram(channels, 5), random_weight(3, channels, 5)
    curve = damage_curve(gram, weight, block=block)
    order = curve.order.tolist()
    assert sorted(order) == list(range(channels))
    expected: list[float] = []
    before = 0.0
    while len(expected) < channels:
        taken = min(block, channels - len(expected))
        after = support_damage(damped(gram), weight, order[len(expected) + taken :])
        expected += [(after - before) / taken] * taken
        before = after
    exact = torch.tensor(expected, dtype=torch.float64).cummax(0).values
    torch.testing.assert_close(curve.damage, exact, rtol=1e-7, atol=1e-9)


def test_prefixes_cost_what_the_direct_solve_says_when_the_curve_is_convex() -> None:
    # Uncorrelated channels: each removal is independent, so the running maximum changes nothing.
    gram = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    weight = random_weight(3, 8, 0)
    curve = damage_curve(gram, weight, block=1)
    order = curve.order.tolist()
    for removed in range(9):
        exact = support_damage(damped(gram), weight, order[removed:])
        assert float(curve.damage[:removed].sum()) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_blocks_agree_with_single_removals_in_total() -> None:
    channels = 160
    gram = random_gram(channels, 7) + 5 * torch.eye(channels).double()
    weight = random_weight(24, channels, 7)
    hessian = damped(gram)
    single, blocks = damage_curve(gram, weight, block=1), damage_curve(gram, weight, block=16)
    for removed in (32, 80, 128):
        best = support_damage(hessian, weight, single.order.tolist()[removed:])
        found = support_damage(hessian, weight, blocks.order.tolist()[removed:])
        assert found == pytest.approx(best, rel=0.15)
    everything = support_damage(hessian, weight, [])
    for curve in (single, blocks):  # The running maximum can only add.
        assert float(curve.damage.sum()) >= everything * (1 - 1e-9)
        assert float(curve.damage.sum()) == pytest.approx(everything, rel=0.2)


def test_dead_channels_go_first_and_free() -> None:
    gram, weight = random_gram(8, 1), random_weight(3, 8, 1)
    dead = [2, 5]
    gram[dead] = 0.0
    gram[:, dead] = 0.0
    curve = damage_curve(gram, weight, block=1)
    assert curve.order[:2].tolist() == dead
    assert curve.damage[:2].tolist() == [0.0, 0.0]
    assert (curve.damage[2:] > 0).all()
    alive = [j for j in range(8) if j not in dead]
    living = damage_curve(gram[alive][:, alive], weight[:, alive], block=1)
    assert curve.order[2:].tolist() == [alive[j] for j in living.order.tolist()]
    torch.testing.assert_close(curve.damage[2:], living.damage)


def test_a_layer_that_never_fires_is_free() -> None:
    curve = damage_curve(torch.zeros(5, 5), torch.ones(2, 5))
    assert sorted(curve.order.tolist()) == list(range(5))
    assert curve.damage.tolist() == [0.0] * 5
    assert curve.damage.dtype == torch.float64


def test_one_channel() -> None:
    curve = damage_curve(torch.tensor([[4.0]]), torch.tensor([[3.0]]))
    assert curve.order.tolist() == [0]
    assert float(curve.damage[0]) == pytest.approx(4.0 * (1 + module.HESSIAN_DAMPING) * 9.0)


def test_it_leaves_its_arguments_alone() -> None:
    gram, weight = random_gram(20, 0), random_weight(3, 20, 0)
    copies = gram.clone(), weight.clone()
    damage_curve(gram, weight)
    assert torch.equal(gram, copies[0])
    assert torch.equal(weight, copies[1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 40), block=st.integers(1, 20))
def test_order_is_a_permutation_and_damage_never_decreases(
    seed: int, channels: int, block: int
) -> None:
    curve = damage_curve(random_gram(channels, seed), random_weight(3, channels, seed), block)
    assert sorted(curve.order.tolist()) == list(range(channels))
    assert (curve.damage.diff() >= 0).all()
    assert (curve.damage >= 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_renaming_channels_renames_the_order(seed: int) -> None:
    gram, weight = random_gram(12, seed), random_weight(4, 12, seed)
    names = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    plain = damage_curve(gram, weight, block=4)
    renamed = damage_curve(gram[names][:, names], weight[:, names], block=4)
    torch.testing.assert_close(renamed.damage, plain.damage, rtol=1e-6, atol=1e-9)
    orders = [names[renamed.order].tolist(), plain.order.tolist()]
    blocks = [[set(o[i : i + 4]) for i in (0, 4, 8)] for o in orders]
    assert blocks[0] == blocks[1]


def test_scaling_the_problem_scales_the_damage() -> None:
    gram, weight = random_gram(12, 2), random_weight(4, 12, 2)
    plain, scaled = damage_curve(gram, weight), damage_curve(7.0 * gram, 3.0 * weight)
    assert torch.equal(plain.order, scaled.order)
    torch.testing.assert_close(scaled.damage, 63.0 * plain.damage)


def test_a_singular_gram_is_damped_not_refused() -> None:
    gram, weight = random_gram(20, 4, tokens=5), random_weight(4, 20, 4)
    curve = damage_curve(gram, weight, block=1)
    exact = marginal_damages(damped(gram), weight, curve.order.tolist())
    torch.testing.assert_close(curve.damage, exact.cummax(0).values, rtol=1e-6, atol=1e-8)


def indefinite(channels: int, lowest: float) -> torch.Tensor:
    """A Gram matrix that rounding has spoiled: diagonal of ones, smallest eigenvalue `lowest`."""
    rest = torch.eye(channels, dtype=torch.float64)
    rest[0, 1] = rest[1, 0] = 1.0 - lowest
    return rest


@pytest.mark.parametrize(("lowest", "retries"), [(0.5, 0), (-0.05, 1), (-0.5, 2)])
def test_retries_of_the_factorisation_are_reported(lowest: float, retries: int) -> None:
    gram, weight = indefinite(8, lowest), random_weight(3, 8, 0)
    assert damage_curve(gram, weight).retries == retries
    assert group_damage_curve(gram, weight, columns=2).retries == retries


def test_the_remedy_names_nothing_that_does_not_help() -> None:
    gram = indefinite(8, -2.0 * module.HESSIAN_DAMPING * RIDGE_GROWTH**MAX_RETRIES)
    with pytest.raises(NumericalFailure, match="not positive definite") as caught:
        damage_curve(gram, random_weight(3, 8, 0))
    assert "calibration" in str(caught.value.remedy)
    assert "damping" not in str(caught.value.remedy)  # the curve's own is a constant


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [(0, 0), (1, 2)])
def test_a_gram_that_is_not_finite_is_refused(value: float, where: tuple[int, int]) -> None:
    gram = random_gram(6, 0)
    gram[where] = gram[where[::-1]] = value
    with pytest.raises(NumericalFailure):
        damage_curve(gram, random_weight(3, 6, 0))
