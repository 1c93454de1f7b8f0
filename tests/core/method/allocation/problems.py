"""Random problems of allocating widths, and what any solution of them must satisfy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from strucprune_core.method.allocation.budget import (
    REACH_TOLERANCE,
    WidthRule,
    parameters_to_remove,
)
from strucprune_core.method.allocation.threshold import allocate_by_threshold

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    damages: list[Curve]
    energies: list[float]
    sparsity: float
    rule: WidthRule

    @property
    def dense(self) -> list[int]:
        return [len(curve) for curve in self.damages]

    @property
    def budget(self) -> int:
        return parameters_to_remove(self.sparsity, self.dense, [1] * len(self.dense))

    def widths(self, sparsity: float | None = None) -> tuple[int, ...]:
        wanted = self.sparsity if sparsity is None else sparsity
        per_channel = [30] * len(self.damages)
        return allocate_by_threshold(
            self.damages, self.energies, wanted, [self.rule] * len(self.damages), per_channel
        ).widths

    def damage(self, widths: tuple[int, ...]) -> float:
        return sum(
            alpha * float(curve[: len(curve) - width].sum())
            for alpha, curve, width in zip(self.energies, self.damages, widths, strict=True)
        )


def convex_curves(widths: list[int], seed: int) -> list[Curve]:
    """Increasing curves with all values distinct, as different in scale as real layers'."""
    draw = np.random.default_rng(seed)
    return [np.sort(draw.exponential(draw.lognormal(0, 2), size=width)) for width in widths]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    widths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    seed = draw(st.integers(0, 10**6))
    rule = WidthRule(draw(st.floats(0.05, 0.5)), draw(st.sampled_from([1, 2, 8, 16])))
    energies = np.random.default_rng(seed + 1).lognormal(0, 1, size=len(widths)).tolist()
    reachable = sum(width - rule.floor(width) for width in widths) / sum(widths)
    sparsity = draw(st.floats(0.001, 0.999)) * reachable or 0.01
    return Problem(convex_curves(widths, seed), energies, sparsity, rule)


def is_nearest(removed: int, budget: int, largest_step: int) -> bool:
    """Whether so much goes as whole steps allow: from above, or less where that is nearer."""
    if removed >= budget:
        return removed - budget < largest_step
    # Less than half a step short, and where a whole one would have been too much to say nothing.
    return 2 * (budget - removed) < largest_step and largest_step > REACH_TOLERANCE * budget


def reachable(problem: Problem) -> bool:
    most = sum(width - problem.rule.floor(width) for width in problem.dense)
    return problem.budget <= most
