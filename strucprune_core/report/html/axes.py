"""The vertical axes of plots: places of values, and round numbers as labels. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

# Below the first ratio a linear axis shows everything. Beyond the second the smallest values are
# mere rounding, such as the error of a layer that lost nothing.
_LOG_RANGES = (30.0, 1e8)
_TINY, _HUGE = 1e-290, 1e290


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis `height` pixels tall."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool
    height: int

    def y(self, value: float) -> float:
        """Pixels from the top to `value`."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.height * (1 - (at - low) / (high - low))


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether a value has a place on an axis: it is finite and of a size that can be scaled."""
    return value is not None and abs(value) < _HUGE  # False for NaN and infinities.


def wants_log(values: Iterable[float | None]) -> bool:
    """Whether values are all positive and span more than a factor of 30, rounding aside."""
    finite = [value for value in values if drawable(value)]
    least, most = _LOG_RANGES
    return bool(finite) and min(finite) > 0 and least < max(finite) / min(finite) < most


def fitting_axis(values: Iterable[float | None], height: int) -> Axis:
    """A logarithmic axis if the values span enough for one, else a linear one."""
    listed = list(values)
    return (_log_axis if wants_log(listed) else linear_axis)(listed, height)


def linear_axis(values: Iterable[float | None], height: int) -> Axis:
    """An axis from zero to a round number above the largest value (and below the smallest)."""
    finite = [value for value in values if drawable(value)]
    top, bottom = max([0.0, *finite]), min([0.0, *finite])
    if top - bottom < _TINY:
        top = 1.0
    step = _round_step((top - bottom) / 4)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], ticks=ticks, log=False, height=height)


def width_axis(widths: Sequence[int], height: int) -> Axis:
    """A linear axis that ends at the widest layer, so that dense columns fill the plot."""
    axis, top = linear_axis(widths, height), max(widths, default=0)
    if not 0 < top < axis.high:
        return axis
    return replace(axis, high=top, ticks=tuple(at for at in axis.ticks if at <= top))


def _round_step(rough: float) -> float:
    """The first of 1, 2, 2.5, 5 or 10 times a power of ten at or above `rough`."""
    scale = 10.0 ** math.floor(math.log10(rough))
    return next((lead * scale for lead in (1, 2, 2.5, 5) if rough <= lead * scale), 10 * scale)


def _log_axis(values: Iterable[float | None], height: int) -> Axis:
    """An axis around positive values, with powers of ten or 1-3 steps as ticks."""
    finite = [value for value in values if drawable(value)]
    low, high = min(finite) / 1.15, max(finite) * 1.15
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    leads = (1, 3) if last - first <= 3 else (1,)
    every = max(1, -(-(last - first) // 6))
    ticks = (lead * 10.0**power for power in range(first, last + 1, every) for lead in leads)
    return Axis(low, high, tuple(at for at in ticks if low <= at <= high), log=True, height=height)
