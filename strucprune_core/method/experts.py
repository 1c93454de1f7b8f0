"""Which experts of a layer stay, by what they contribute on the calibration text.

An expert's score is a mean over the tokens that reach it, so that one that is rarely needed is not
taken for one that does little: the squared norm of its output f_j ("output_norm"; gate-free scores
do best where the task is not known, arXiv 2606.15716), or the norm times the router's weight g_j,
as REAP has it (arXiv 2510.13999, equation 9):

    S_j = 1 / |X_j| sum over x in X_j of g_j(x) ||f_j(x)||,    X_j: the tokens that reach j

What REAP adds, that experts are compared within a layer only, holds here for both. Experts that no
token reaches have no score and go first.
"""

from __future__ import annotations

from collections.abc import Sequence


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
        # Of equal ones the first stay.
        order = sorted(group, key=lambda j: (tokens[j] == 0, -scores[j], j))
        kept += sorted(order[: count // groups])
    return kept
