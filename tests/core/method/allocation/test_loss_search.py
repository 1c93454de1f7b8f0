from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.method.allocation.loss_search import Try, best_try, next_sparsity

LIMIT = math.log(1.2)
Loss = Callable[[float], float]


def run(predicted: Loss, measured: Loss, *, tries: int, limit: float = LIMIT) -> list[Try]:
    done: list[Try] = []
    for number in range(1, tries + 1):
        sparsity = next_sparsity(done, limit, predicted, least=0.01, most=0.9, last=number == tries)
        done.append(Try(sparsity, predicted(sparsity), measured(sparsity)))
    return done


def predicted(sparsity: float) -> float:
    return 2.0 * sparsity**2


def test_a_true_prediction_is_hit_at_once() -> None:
    (first,) = run(predicted, predicted, tries=1)
    assert best_try([first], LIMIT) is first
    assert first.measured == pytest.approx(0.6 * LIMIT, rel=0.01)  # The only try must not fail.


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("power", [0.9, 1.0, 1.2])
def test_three_tries_come_close(factor: float, power: float) -> None:
    def measured(sparsity: float) -> float:
        return float(factor * predicted(sparsity) ** power)

    found = best_try(run(predicted, measured, tries=3), LIMIT)
    assert found is not None
    assert 0.78 * LIMIT <= found.measured <= LIMIT


def test_what_helped_is_passed_over_for_more() -> None:
    """Of a model that pruning improves, the loss has no logarithm."""
    found = run(predicted, lambda sparsity: -0.1, tries=3)
    assert [each.sparsity for each in found] == sorted(each.sparsity for each in found)
    assert found[-1].sparsity > 0.6


def test_nothing_is_taken_that_broke_the_limit() -> None:
    found = run(predicted, lambda sparsity: 9.0, tries=4)
    assert best_try(found, LIMIT) is None
    assert [each.sparsity for each in found] == sorted(
        (each.sparsity for each in found), reverse=True
    )


@given(
    factor=st.floats(0.05, 20.0),
    power=st.floats(0.5, 2.0),
    limit=st.floats(0.005, 1.0),
    wobble=st.floats(0.0, 0.3),
    tries=st.integers(1, 6),
)
def test_tries_stay_within_what_is_known(
    factor: float, power: float, limit: float, wobble: float, tries: int
) -> None:
    def measured(sparsity: float) -> float:
        rough = 1.0 + wobble * math.sin(40 * sparsity)
        return float(factor * predicted(sparsity) ** power * rough)

    done: list[Try] = []
    for number in range(1, tries + 1):
        sparsity = next_sparsity(done, limit, predicted, least=0.01, most=0.9, last=number == tries)
        assert 0.01 <= sparsity <= 0.9
        kept = best_try(done, limit)
        if kept is not None:
            assert sparsity >= kept.sparsity
        for each in done:
            if each.measured > limit and (kept is None or each.sparsity >= kept.sparsity):
                assert sparsity <= each.sparsity
        done.append(Try(sparsity, predicted(sparsity), measured(sparsity)))


def test_more_tries_do_not_find_less() -> None:
    def measured(sparsity: float) -> float:
        return float(1.9 * predicted(sparsity) ** 1.3)

    found = [best_try(run(predicted, measured, tries=count), LIMIT) for count in (3, 4, 5, 6)]
    reached = [0.0 if each is None else each.sparsity for each in found]
    assert reached == sorted(reached)
