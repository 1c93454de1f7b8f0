"""The most sparsity whose loss stays within a limit, by few measurements of the loss.

Damage curves and energies predict the loss f(s) of a sparsity s in nats per token, up to what they
do not see: other text, repair by training, layers that add up. What is measured is r(s), the
logarithm of the ratio of perplexities. We take log r to be piecewise linear in log f through the
tries: with one try r = c f, with more also the slope is learned. The next try is the sparsity at
which this predicts the limit, between the highest that kept it and the lowest that did not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DIGITS = 4
"""Decimal places of a sparsity that is tried."""

MOST_LOSS = 100.0
"""What counts as the loss of a model whose perplexity is beyond all numbers."""

# What a try aims at, as a share of the limit: just below it once a try has kept it. Before that a
# little lower, and lower still once one has broken it, for loss falls more slowly than predicted.
# The last one must give a result: the fewer tries it is based on, the lower it aims.
_AIM, _FIRST_AIM, _NEXT_AIM, _LAST_AIMS = 0.98, 0.93, 0.88, (0.6, 0.7, 0.85)
# A better perplexity than the dense model's has no logarithm that could be compared.
_LEAST_LOSS = 1e-4
# Slopes of log r over log f beyond the tries: noise between close ones must not be carried far.
_SLOPES = (0.8, 2.5)
_STEPS = 40


@dataclass(frozen=True, slots=True)
class Try:
    """A sparsity with the loss that was predicted and the one that was measured, both in nats."""

    sparsity: float
    predicted: float
    measured: float


def best_try(tries: Sequence[Try], limit: float) -> Try | None:
    """The one with the most sparsity that kept the limit; None if none did.

    Args:
        tries: All so far.
        limit: Most loss, in nats per token.
    """
    kept = [each for each in tries if each.measured <= limit]
    return max(kept, key=lambda each: each.sparsity, default=None)


def next_sparsity(
    tries: Sequence[Try],
    limit: float,
    predicted: Callable[[float], float],
    *,
    least: float,
    most: float,
    last: bool,
) -> float:
    """The sparsity that is tried next.

    Args:
        tries: All so far.
        limit: Most loss, in nats per token, above 0.
        predicted: The predicted loss of a sparsity; grows with it.
        least: Lowest that the model allows.
        most: Highest that it allows.
        last: Whether no other try follows.
    """
    kept = best_try(tries, limit)
    aim = limit * (_aim_without_result(len(tries), last=last) if kept is None else _AIM)
    low = least if kept is None else kept.sparsity
    broken = [each.sparsity for each in tries if each.measured > limit and each.sparsity >= low]
    high = min(broken, default=most)
    expected = _expectation(tries)
    bounds = low, high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if expected(predicted(middle)) <= aim:
            low = middle
        else:
            high = middle
    chosen = round(low, DIGITS)
    tried = {each.sparsity for each in tries}
    if chosen in tried and bounds[1] - bounds[0] > 2 * 10**-DIGITS:
        chosen = round(sum(bounds) / 2, DIGITS)  # Halve what is left.
    return min(max(chosen, least), most)


def _aim_without_result(tries: int, *, last: bool) -> float:
    if last:
        return _LAST_AIMS[min(tries, len(_LAST_AIMS) - 1)]
    return _NEXT_AIM if tries else _FIRST_AIM


def _expectation(tries: Sequence[Try]) -> Callable[[float], float]:
    """The loss that is expected where one is predicted."""
    points = sorted(
        {
            math.log(max(each.predicted, _LEAST_LOSS)): math.log(max(each.measured, _LEAST_LOSS))
            for each in tries
        }.items()
    ) or [(0.0, 0.0)]

    def expected(loss: float) -> float:
        x = math.log(max(loss, _LEAST_LOSS))
        return math.exp(min(_through(points, x), 700.0))

    return expected


def _through(points: Sequence[tuple[float, float]], x: float) -> float:
    """The piecewise linear function through points at x; of one point alone with slope 1."""
    if len(points) == 1:
        ((x0, y0),) = points
        return y0 + (x - x0)
    inner = next((n for n in range(1, len(points) - 1) if x <= points[n][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[inner - 1], points[inner]
    slope = (y1 - y0) / (x1 - x0)
    if x < points[0][0] or x > points[-1][0]:
        slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
    end = (x0, y0) if x < points[0][0] else (x1, y1)
    return end[1] + slope * (x - end[0])
