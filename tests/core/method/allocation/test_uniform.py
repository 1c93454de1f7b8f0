from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import WidthRule
from strucprune_core.method.allocation.uniform import allocate_uniformly


@given(
    widths=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    sparsity=st.floats(0.001, 0.999),
    multiple=st.sampled_from([1, 3, 8, 64]),
)
def test_every_layer_loses_its_share_or_what_is_nearest(
    widths: list[int], sparsity: float, multiple: int
) -> None:
    rule = WidthRule(0.1, multiple)
    try:
        allocation = allocate_uniformly(widths, sparsity, [rule] * len(widths))
    except InvalidSpec:
        most = [int((1 - sparsity) * width + 1e-9) // multiple * multiple for width in widths]
        beyond = any(width < rule.floor(dense) for width, dense in zip(most, widths, strict=True))
        # Or dense is nearest everywhere: less than half a step was asked for.
        assert beyond or max(sparsity * width for width in widths) <= multiple / 2
        return
    assert allocation.price is None
    for dense, width in zip(widths, allocation.widths, strict=True):
        share = (1 - sparsity) * dense
        allowed = rule.widths(dense)
        assert width in allowed
        if width > share + 1e-6:  # Less than its share is removed only where that is nearest.
            assert width - share == pytest.approx(min(abs(each - share) for each in allowed))
        assert width > share - multiple - 1e-6


@pytest.mark.parametrize(
    ("sparsity", "multiple", "width"),
    [(0.3, 1, 70), (0.3, 8, 72), (0.35, 8, 64), (0.79, 20, 20), (0.01, 1, 99), (0.9, 1, 10)],
)
def test_by_hand(sparsity: float, multiple: int, width: int) -> None:
    found = allocate_uniformly([100, 100], sparsity, [WidthRule(0.1, multiple)] * 2)
    assert found.widths == (width, width)


@pytest.mark.parametrize(("sparsity", "multiple"), [(0.91, 1), (0.5, 64), (0.01, 128)])
def test_out_of_reach(sparsity: float, multiple: int) -> None:
    with pytest.raises(InvalidSpec, match=r"out of reach|nothing to remove") as caught:
        allocate_uniformly([100], sparsity, [WidthRule(0.1, multiple)])
    assert caught.value.field == "pruning.sparsity"


def test_what_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"0\.1 rounds to nothing.*0\.3333") as caught:
        allocate_uniformly([192], 0.1, [WidthRule(0.1, 128)])
    assert caught.value.field == "pruning.sparsity"
    assert "0.3333" in str(caught.value.remedy)
    assert allocate_uniformly([192], 0.2, [WidthRule(0.1, 128)]).widths == (128,)
