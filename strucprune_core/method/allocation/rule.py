"""Which rule shares the budget between layers: the one place that chooses between the three.

`threshold` (the default) and `softmax` are StructPrune's two allocations (abstract: a closed-form
mask rule, and a softmax form); `uniform` is the baseline that needs no measurement. We keep all
three behind one function, so that a job can name any of them and a benchmark can compare them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.budget import WidthRule
from strucprune_core.method.allocation.softmax import allocate_by_softmax
from strucprune_core.method.allocation.threshold import Allocation, allocate_by_threshold
from strucprune_core.method.allocation.uniform import allocate_uniformly

Rule = Literal["threshold", "softmax", "uniform"]


def allocate(
    rule: Rule,
    damages: list[NDArray[np.float64]],
    energies: list[float],
    sparsity: float,
    limits: list[WidthRule],
    parameters: list[int],
    temperature: float | None = None,
) -> Allocation:
    """Widths of all sites by one rule.

    Args:
        rule: Which one.
        damages: Per site, non-decreasing marginal damage of the r-th removal, (f_l,).
        energies: Per site, alpha_l > 0: loss per unit of damage; `uniform` ignores them.
        sparsity: Fraction of all structures' parameters to remove, in (0, 1).
        limits: Per site, the floor of its width and the multiple that it keeps.
        parameters: Per site, parameters of one structure.
        temperature: T of `softmax`; None chooses it on predicted damage.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    if rule == "uniform":
        return allocate_uniformly([len(damage) for damage in damages], sparsity, limits)
    if rule == "softmax":
        chosen = allocate_by_softmax(damages, energies, sparsity, limits, parameters, temperature)
        return Allocation(chosen.widths, None, chosen.temperature)
    return allocate_by_threshold(damages, energies, sparsity, limits, parameters)
