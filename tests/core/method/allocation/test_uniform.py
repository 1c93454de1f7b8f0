from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import WidthRule, parameters_to_remove
from strucprune_core.method.allocation.uniform import allocate_uniformly


@given(
    widths=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    sparsity=st.floats(0.001, 0.999),
    multiple=st.sampled_from([1, 3, 8, 64]),
)
def test_every_layer_loses_at_least_its_share(
    widths: list[int], sparsity: float, multiple: int
) -> None:
    rule = WidthRule(0.1, multiple)
    try:
        allocation = allocate_uniformly(widths, sparsity, [rule] * len(widths))
    except InvalidSpec:
        most = [int((1 - sparsity) * width + 1e-9) // multiple * multiple for width in widths]
        assert any(width < rule.floor(dense) for width, dense in zip(most, widths, strict=True))
        return
    assert allocation.price is None
    for dense, width in zip(widths, allocation.widths, strict=True):
        share = (1 - sparsity) * dense
        assert rule.floor(dense) <= width <= share + 1e-6
        assert width > share - multiple - 1e-6
        assert width % multiple == 0
    assert (
        sum(widths) - sum(allocation.widths)
        >= parameters_to_remove(sparsity, widths, [1] * len(widths)) - 1
    )


@pytest.mark.parametrize(
    ("sparsity", "multiple", "width"), [(0.3, 1, 70), (0.3, 8, 64), (0.01, 1, 99), (0.9, 1, 10)]
)
def test_by_hand(sparsity: float, multiple: int, width: int) -> None:
    found = allocate_uniformly([100, 100], sparsity, [WidthRule(0.1, multiple)] * 2)
    assert found.widths == (width, width)


@pytest.mark.parametrize(("sparsity", "multiple"), [(0.91, 1), (0.5, 64), (0.01, 128)])
def test_out_of_reach(sparsity: float, multiple: int) -> None:
    with pytest.raises(InvalidSpec, match="out of reach") as caught:
        allocate_uniformly([100], sparsity, [WidthRule(0.1, multiple)])
    assert caught.value.field == "pruning.sparsity"
