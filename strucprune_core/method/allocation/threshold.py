"""The closed-form mask rule: remove a channel if its loss per parameter is below one global price.

    minimise  sum_l alpha_l D_l(removed_l)   subject to  sum_l params_l removed_l >= B
    remove the r-th channel of layer l   iff   alpha_l c_l(r) / params_l <= lambda

This is StructPrune's explicit rule for layer-wise sparsity (abstract, section 3): the sparsity of a
layer is F_l(lambda), the distribution function of its scaled scores. D_l is the convex damage curve
of `layer/damage_curve`, c_l(r) its r-th step, alpha_l the layer's energy. The price lambda is the
Lagrange multiplier of the budget B. Solving every layer at a given price is dual decomposition
(Boyd et al. 2011, section 2.2), and Everett (1963) shows that it is optimal for the budget it
meets.

We differ in how lambda is found. A bisection would need a tolerance; we merge the layers' sorted
steps and walk them in order of price until the budget is met, which gives the bisection's limit. A
step may hold several channels, where widths must be multiples of a hardware tile.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.budget import WidthRule, is_enough, reachable_budget


@dataclass(frozen=True, slots=True)
class Allocation:
    """Widths and the price that gave them.

    Attributes:
        widths: Structures kept at each site.
        price: lambda, loss per parameter of the last step taken; None for rules without a price.
        temperature: T of the energy rule; None for the others.
    """

    widths: tuple[int, ...]
    price: float | None
    temperature: float | None = None


def allocate_by_threshold(
    damages: list[NDArray[np.float64]],
    energies: list[float],
    sparsity: float,
    rules: list[WidthRule],
    parameters: list[int],
) -> Allocation:
    """Widths under one price.

    Args:
        damages: Per site, non-decreasing marginal damage of the r-th removal, (f_l,).
        energies: Per site, alpha_l > 0: loss per unit of damage.
        sparsity: Fraction of all structures' parameters to remove, in (0, 1).
        rules: Per site, floors and rounding.
        parameters: Per site, parameters of one structure.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    dense = [len(damage) for damage in damages]
    budget = reachable_budget(sparsity, dense, parameters, rules)
    queues = [
        _steps(damage, energy / each, rule)
        for damage, energy, each, rule in zip(damages, energies, parameters, rules, strict=True)
    ]
    widths, price, removed = list(dense), 0.0, 0
    # Each queue is sorted by price (the curves are convex), so the merge is too. Ties go to the
    # earlier site: the result never depends on hashing or threads.
    merged = heapq.merge(*([(p, layer, w) for p, w in q] for layer, q in enumerate(queues)))
    for step_price, layer, width in merged:
        step = (widths[layer] - width) * parameters[layer]
        if is_enough(removed, step, budget):
            break
        removed += step
        widths[layer], price = width, step_price
    return Allocation(tuple(widths), price)


def _steps(damage: NDArray[np.float64], scale: float, rule: WidthRule) -> list[tuple[float, int]]:
    """(price per parameter, width after the step) for each step a layer may take."""
    dense = len(damage)
    steps = []
    price = 0.0
    for before, after in pairwise(rule.widths(dense)):
        mean = float(damage[dense - before : dense - after].mean())
        price = max(price, scale * mean)  # Rounding in the mean must not unsort the queue.
        steps.append((price, after))
    return steps
