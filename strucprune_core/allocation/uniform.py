"""The plain rule: every layer loses the same fraction of its channels."""

from __future__ import annotations

import math

from strucprune_core.allocation.budget import WidthRule, out_of_reach
from strucprune_core.allocation.threshold import Allocation


def allocate_uniformly(dense_widths: list[int], sparsity: float, rule: WidthRule) -> Allocation:
    """Keep `(1 - sparsity)` of each layer, rounded down to a multiple.

    Args:
        dense_widths: Channels of each layer.
        sparsity: Fraction to remove, in (0, 1).
        rule: Floors and rounding.

    Raises:
        InvalidSpec: a layer's floor does not allow the sparsity.
    """
    widths = []
    for dense in dense_widths:
        most = math.floor((1.0 - sparsity) * dense + 1e-9)
        width = most // rule.multiple_of * rule.multiple_of
        if width < rule.floor(dense):
            raise out_of_reach(sparsity, 1.0 - rule.floor(dense) / dense)
        widths.append(width)
    return Allocation(tuple(widths), None)
