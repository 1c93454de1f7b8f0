"""What the allocation rules share: the widths that a site may take, and the parameter budget.

Widths count structures (FFN channels, heads). A site of width f shrinks in steps: first to the next
multiple of `multiple_of`, then one multiple at a time, and never below its floor. The budget counts
parameters, not structures, so that channels and heads of different size compete fairly. StructPrune
states its target as a sparsity; counted in parameters, FFN channels alone give the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from strucprune_core.errors import InvalidSpec


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

        A part of a structure does not count, so that keeping 0.1 allows a sparsity of 0.9.
        """
        least = max(1, math.floor(self.min_keep_fraction * width + 1e-9))
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


def out_of_reach(sparsity: float, reachable: float) -> InvalidSpec:
    """The error of a budget that the floors do not allow."""
    return InvalidSpec(
        f"{sparsity:.4g} is out of reach: the floors allow at most {reachable:.4g}",
        field="pruning.sparsity",
        remedy="Lower pruning.sparsity, pruning.min_keep_fraction or pruning.multiple_of.",
    )
