"""Which experts of a layer stay, by what they contribute on the calibration text.

An expert's score is a mean over the tokens that reach it, so that one that is rarely needed is not
taken for one that does little: the norm of its output f_j times the router's weight g_j, as REAP
has it (arXiv 2510.13999, equation 9), or the squared norm alone ("output_norm"; arXiv 2606.15716
finds scores without the router's weight better where the task is not known; docs/experts.md has
what we measured):

    S_j = 1 / |X_j| sum over x in X_j of g_j(x) ||f_j(x)||,    X_j: the tokens that reach j

What REAP adds, that experts are compared within a layer only, holds here for both. Experts that no
token reaches have no score and go first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def removal_damages(measured: Sequence[tuple[int, float]], steps: int) -> NDArray[np.float64]:
    """Marginal damage of each removal in the order of `stay`, one expert of each group at a time.

    Damage is the mean over tokens of the squared error of the layer's output. It is measured, not
    summed up from what single experts put out: others are chosen in place of those that went, and
    the fewer are left, the worse they fit.

    Args:
        measured: (removals, damage) of some numbers of removals, in any order.
        steps: Removals that would leave none.

    Returns:
        (steps,), interpolated, and not decreasing: a removal never costs less than one before it.
    """
    points = sorted({0: 0.0, **dict(measured)}.items())
    total = np.interp(
        np.arange(steps + 1), [count for count, _ in points], [damage for _, damage in points]
    )
    return np.maximum.accumulate(np.diff(total))


def stay(scores: Sequence[float], tokens: Sequence[int], count: int, groups: int = 1) -> list[int]:
    """The experts that stay, ascending: those of the highest scores, equally many of each group.

    Args:
        scores: By expert.
        tokens: How many reach each expert.
        count: How many stay, a multiple of `groups`.
        groups: Experts form so many groups of equal size, one after the other.
    """
    size = len(scores) // groups
    kept: list[int] = []
    for first in range(0, len(scores), size):
        group = range(first, first + size)
        kept += sorted(_order(group, scores, tokens)[size - count // groups :])
    return kept


def _order(group: range, scores: Sequence[float], tokens: Sequence[int]) -> list[int]:
    """Experts of a group, the first to go first; of equal ones the last."""
    return sorted(group, key=lambda j: (tokens[j] > 0, scores[j], -j))
