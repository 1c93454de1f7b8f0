"""The baseline rule: every layer loses the same fraction of its channels.

It needs no damage curves, energies or price, and gives a checkpoint of one width that every runtime
loads. Most local pruning methods allocate like this (SparseGPT, Wanda). StructPrune's two rules,
`threshold` and `softmax`, exist to do better: on SmolLM2-135M at 30 %, a perplexity ratio of 1.424
(threshold) instead of 1.560 (benchmarks/results/rivals.json).
"""

from __future__ import annotations

import math

from strucprune_core.method.allocation.budget import (
    REACH_TOLERANCE,
    WidthRule,
    out_of_reach,
    too_small,
)
from strucprune_core.method.allocation.threshold import Allocation


def allocate_uniformly(
    dense_widths: list[int], sparsity: float, rules: list[WidthRule]
) -> Allocation:
    """Keep `(1 - sparsity)` of each site, rounded down to a multiple, or up if that is nearer.

    Up only where down takes the site further than `REACH_TOLERANCE` from what was asked for.

    Args:
        dense_widths: Structures of each site.
        sparsity: Fraction to remove, in (0, 1).
        rules: Per site, floors and rounding.

    Raises:
        InvalidSpec: a floor does not allow the sparsity, or all of it rounds to nothing.
    """
    widths: list[int] = []
    for dense, rule in zip(dense_widths, rules, strict=True):
        most = math.floor((1.0 - sparsity) * dense + 1e-9)
        below = most // rule.multiple_of * rule.multiple_of
        if below < rule.floor(dense):
            sites = zip(dense_widths, rules, strict=True)
            raise out_of_reach(sparsity, min(1.0 - rule.floor(size) / size for size, rule in sites))
        above = min(below + rule.multiple_of, dense)
        wanted = (1.0 - sparsity) * dense
        far = wanted - below > REACH_TOLERANCE * sparsity * dense
        widths.append(above if far and above - wanted < wanted - below else below)
    if widths == dense_widths:
        steps = zip(dense_widths, rules, strict=True)
        raise too_small(sparsity, min(1.0 - rule.widths(dense)[1] / dense for dense, rule in steps))
    return Allocation(tuple(widths), None)
