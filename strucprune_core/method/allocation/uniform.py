"""The baseline rule: every layer loses the same fraction of its channels.

It needs no damage curves, energies or price, and gives a checkpoint of one width that every runtime
loads. Most local pruning methods allocate like this (SparseGPT, Wanda). StructPrune's two rules,
`threshold` and `softmax`, exist to do better: on SmolLM2-135M at 30 %, a perplexity ratio of 1.424
(threshold) instead of 1.560 (benchmarks/results/rivals.json).
"""

from __future__ import annotations

import math

from strucprune_core.method.allocation.budget import WidthRule, out_of_reach
from strucprune_core.method.allocation.threshold import Allocation


def allocate_uniformly(
    dense_widths: list[int], sparsity: float, rules: list[WidthRule]
) -> Allocation:
    """Keep `(1 - sparsity)` of each site, rounded down to a multiple.

    Args:
        dense_widths: Structures of each site.
        sparsity: Fraction to remove, in (0, 1).
        rules: Per site, floors and rounding.

    Raises:
        InvalidSpec: a floor does not allow the sparsity.
    """
    widths = []
    for dense, rule in zip(dense_widths, rules, strict=True):
        most = math.floor((1.0 - sparsity) * dense + 1e-9)
        width = most // rule.multiple_of * rule.multiple_of
        if width < rule.floor(dense):
            raise out_of_reach(sparsity, 1.0 - rule.floor(dense) / dense)
        widths.append(width)
    return Allocation(tuple(widths), None)
