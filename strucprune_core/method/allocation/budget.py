"""What the allocation rules share: the widths that a site may take, and the parameter budget.

Widths count structures (FFN channels, heads). A site of width f shrinks in steps: first to the next
multiple of `multiple_of`, then one multiple at a time, and never below its floor. The budget counts
parameters, not structures, so that channels and heads of different size compete fairly. StructPrune
states its target as a sparsity; counted in parameters, FFN channels alone give the same number.

The budget is met from above, so that no less goes than was asked for. Where the last step would
take that further than `REACH_TOLERANCE` and stopping before it is nearer, it is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from strucprune_core.errors import InvalidSpec, Mend

_DIGITS = 4
_LIMITS = (
    "lower pruning.min_keep_fraction or pruning.multiple_of, or raise pruning.max_layer_sparsity "
    "or the numbers in pruning.max_sparsity_by_layer"
)
REACH_TOLERANCE = 0.05
"""Share of the sparsity asked for by which the one reached may be off without a warning."""


@dataclass(frozen=True, slots=True)
class WidthRule:
    """How far and in which steps widths may shrink.

    Attributes:
        min_keep_fraction: Share of a site's structures that always stays, in (0, 1].
        multiple_of: Kept widths are multiples of this.
    """

    min_keep_fraction: float
    multiple_of: int

    def floor(self, width: int) -> int:
        """Smallest width allowed: the floor fraction in whole structures, rounded up to a multiple.

        A part of a structure is dropped, so that keeping 0.1 allows a sparsity of 0.9. But with few
        structures the part may be more than `REACH_TOLERANCE` of what must stay. Then it counts as
        one: half of three heads are two.
        """
        wanted = self.min_keep_fraction * width
        least = max(1, math.floor(wanted + 1e-9))
        if wanted - least > REACH_TOLERANCE * wanted:
            least += 1
        rounded = math.ceil(least / self.multiple_of) * self.multiple_of
        return min(width, rounded)

    def widths(self, width: int) -> list[int]:
        """Every width the site may take, from dense downwards."""
        first = width // self.multiple_of * self.multiple_of
        shrunk = range(first, self.floor(width) - 1, -self.multiple_of)
        return [width, *(w for w in shrunk if w != width)]


def parameters_to_remove(sparsity: float, widths: list[int], parameters: list[int]) -> int:
    """The budget: parameters that must go, rounded up.

    Args:
        sparsity: Fraction of all structures' parameters, in (0, 1).
        widths: Structures of each site.
        parameters: Parameters of one structure of each site.
    """
    total = sum(width * each for width, each in zip(widths, parameters, strict=True))
    return math.ceil(sparsity * total - 1e-9 * total)


def reachable_sparsity(widths: list[int], parameters: list[int], rules: list[WidthRule]) -> float:
    """The largest sparsity that the floors allow, in [0, 1).

    Args:
        widths: Structures of each site.
        parameters: Parameters of one structure of each site.
        rules: Floors and rounding of each site.
    """
    sites = list(zip(widths, parameters, rules, strict=True))
    total = sum(width * each for width, each, _ in sites)
    return sum((width - rule.floor(width)) * each for width, each, rule in sites) / total


def reachable_budget(
    sparsity: float, widths: list[int], parameters: list[int], rules: list[WidthRule]
) -> int:
    """The budget, which the floors must allow.

    Args:
        sparsity: Fraction of all structures' parameters, in (0, 1).
        widths: Structures of each site.
        parameters: Parameters of one structure of each site.
        rules: Floors and rounding of each site.

    Raises:
        InvalidSpec: the floors allow less.
    """
    budget = parameters_to_remove(sparsity, widths, parameters)
    reachable = reachable_sparsity(widths, parameters, rules)
    if reachable <= 0 or budget > parameters_to_remove(reachable, widths, parameters):
        raise out_of_reach(sparsity, reachable)
    return budget


def is_enough(removed: int, step: int, budget: int) -> bool:
    """Whether to stop before a step that removes `step` more parameters.

    At least one step is taken. If it removes much more than asked for, `differs` says so.
    """
    if removed >= budget:
        return True
    over, under = removed + step - budget, budget - removed
    return removed > 0 and over > under and over > REACH_TOLERANCE * budget


def differs(asked: float, reached: float) -> bool:
    """Whether the sparsity reached is so far from the one asked for that a warning is due."""
    return abs(reached - asked) > REACH_TOLERANCE * asked + 1e-9


def nearest_removal(
    sparsity: float, widths: list[int], parameters: list[int], rules: list[WidthRule]
) -> int:
    """Parameters that a rule with a price removes if all structures cost the same.

    Damage curves may order steps of different sizes differently, and so end one step off.
    """
    budget = parameters_to_remove(sparsity, widths, parameters)
    removed = 0
    for width, each, rule in zip(widths, parameters, rules, strict=True):
        all_of_it = (width - rule.floor(width)) * each
        if removed + all_of_it <= budget:  # No need to walk through its widths.
            removed += all_of_it
            continue
        for before, after in pairwise(rule.widths(width)):
            if is_enough(removed, (before - after) * each, budget):
                return removed
            removed += (before - after) * each
    return removed


def out_of_reach(sparsity: float, reachable: float) -> InvalidSpec:
    """The error of a budget that the floors do not allow; `reachable` is the most that they do."""
    if reachable <= 0:
        return InvalidSpec(
            "the limits on what may be removed leave nothing to remove, whatever the sparsity",
            field="pruning.sparsity",
            remedy=f"{_LIMITS[0].upper()}{_LIMITS[1:]}.",
        )
    return InvalidSpec(
        f"{sparsity:.4g} is out of reach: the limits on what may be removed allow at most "
        f"{reachable:.4g}",
        field="pruning.sparsity",
        remedy=f"Ask for at most {rounded_down(reachable):g}, or {_LIMITS}.",
        mends=[Mend("pruning.sparsity", rounded_down(reachable))],
    )


def rounded_up(value: float) -> float:
    """The least number of a few digits that is not below a positive value, for remedies."""
    return _rounded(value, math.ceil)


def rounded_down(value: float) -> float:
    """The greatest number of a few digits that is not above a positive value."""
    return _rounded(value, math.floor)


def _rounded(value: float, whole: Callable[[float], int]) -> float:
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    nearest = round(value * scale)
    # A value of few digits stays as it is, although binary fractions are inexact.
    exact = math.isclose(nearest, value * scale, rel_tol=1e-9)
    return (nearest if exact else whole(value * scale)) / scale


def too_small(sparsity: float, least: float) -> InvalidSpec:
    """The error of a sparsity that is nearer to nothing than to the smallest step."""
    return InvalidSpec(
        f"{sparsity:.4g} rounds to nothing: the least that can be removed is {least:.4g}",
        field="pruning.sparsity",
        remedy=f"Ask for {least:.4g}, or lower pruning.multiple_of.",
        mends=[Mend("pruning.sparsity", float(f"{least:.4g}"))],
    )
