from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import (
    WidthRule,
    differs,
    is_enough,
    nearest_removal,
    out_of_reach,
    parameters_to_remove,
    reachable_sparsity,
    rounded_down,
    rounded_up,
)
from strucprune_core.method.allocation.threshold import allocate_by_threshold


@pytest.mark.parametrize(
    ("width", "fraction", "multiple", "floor"),
    [
        (100, 0.1, 1, 10),
        (101, 0.1, 1, 10),
        (100, 0.1, 8, 16),
        (100, 1e-9, 1, 1),
        (100, 1.0, 1, 100),
        (100, 1.0, 64, 100),
        (100, 0.5, 64, 64),
        (10, 0.1, 64, 10),
        (1, 0.1, 1, 1),
        (3, 0.5, 1, 2),
        (9, 0.4, 1, 4),
        (192, 0.1, 1, 19),
    ],
)
def test_floor(width: int, fraction: float, multiple: int, floor: int) -> None:
    assert WidthRule(fraction, multiple).floor(width) == floor


@pytest.mark.parametrize(
    ("width", "multiple", "widths"),
    [
        (5, 1, [5, 4, 3, 2, 1]),
        (12, 4, [12, 8, 4]),
        (13, 4, [13, 12, 8, 4]),
        (3, 4, [3]),
    ],
)
def test_widths(width: int, multiple: int, widths: list[int]) -> None:
    assert WidthRule(0.1, multiple).widths(width) == widths


@given(
    width=st.integers(1, 400),
    fraction=st.floats(0.001, 1.0),
    multiple=st.integers(1, 130),
)
def test_every_width_is_allowed(width: int, fraction: float, multiple: int) -> None:
    rule = WidthRule(fraction, multiple)
    widths = rule.widths(width)
    assert widths[0] == width
    assert widths == sorted(set(widths), reverse=True)
    assert all(w % multiple == 0 for w in widths[1:])
    assert all(w >= rule.floor(width) > fraction * width - 1 for w in widths)
    if rule.floor(width) < width:
        assert widths[-1] == rule.floor(width)


def test_the_budget_is_rounded_up_but_not_by_rounding_noise() -> None:
    assert parameters_to_remove(0.3, [100, 100], [1, 1]) == 60  # 0.3 * 200 is not quite 60
    assert parameters_to_remove(0.301, [100], [1]) == 31
    assert parameters_to_remove(0.1, [10] * 3, [7] * 3) == 21
    assert parameters_to_remove(1e-6, [5], [1]) == 1
    assert parameters_to_remove(0.5, [10, 3], [4, 100]) == 170


def test_the_reach_counts_parameters() -> None:
    rules = [WidthRule(0.1, 1), WidthRule(0.5, 2)]
    assert reachable_sparsity([10, 4], [3, 20], rules) == pytest.approx((9 * 3 + 2 * 20) / 110)


def test_out_of_reach_says_how_far_one_can_go() -> None:
    error = out_of_reach(0.95, 0.9)
    assert error.field == "pruning.sparsity"
    assert "0.95" in error.message
    assert "0.9" in error.message
    assert error.remedy


@pytest.mark.parametrize("reachable", [1 / 3, 0.9, 1e-7 / 3, 0.10416666])
def test_what_the_remedy_asks_for_is_within_reach(reachable: float) -> None:
    assert 0.999 * reachable < rounded_down(reachable) <= reachable * (1 + 1e-9)
    assert reachable * (1 - 1e-9) <= rounded_up(reachable) < 1.001 * reachable
    assert f"Ask for at most {rounded_down(reachable):g}," in str(out_of_reach(0.95, reachable))


def test_nothing_within_reach() -> None:
    error = out_of_reach(0.1, 0.0)
    assert "nothing to remove" in str(error)
    assert "min_keep_fraction" in str(error.remedy)
    assert "at most 0" not in str(error)


@pytest.mark.parametrize(
    ("removed", "step", "budget", "enough"),
    [
        (100, 1, 100, True),
        (99, 1, 100, False),
        (96, 10, 100, True),  # 4 short, or 6 over
        (94, 10, 100, False),  # 6 short, or 4 over
        (99, 5, 100, False),  # 4 over, but that is no more than may be
        (0, 300, 100, False),  # something goes
    ],
)
def test_enough(removed: int, step: int, budget: int, enough: bool) -> None:
    assert is_enough(removed, step, budget) is enough


def test_what_must_be_said() -> None:
    assert not differs(0.2, 0.2)
    assert not differs(0.2, 0.21)
    assert differs(0.2, 0.2101)
    assert differs(0.2, 0.18)


@given(
    widths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    sparsity=st.floats(0.001, 0.999),
    multiple=st.sampled_from([1, 3, 8, 64]),
)
def test_the_nearest_removal_is_that_of_equal_prices(
    widths: list[int], sparsity: float, multiple: int
) -> None:
    rules = [WidthRule(0.1, multiple)] * len(widths)
    each = [7] * len(widths)
    flat = [np.ones(width) for width in widths]
    try:
        found = allocate_by_threshold(flat, [1.0] * len(widths), sparsity, rules, each)
    except InvalidSpec:
        return
    removed = 7 * (sum(widths) - sum(found.widths))
    assert nearest_removal(sparsity, widths, each, rules) == removed
