"""The plots of the HTML report: inline SVG that needs no script and no view box. No torch.

Horizontal places are percentages and vertical ones pixels, so a plot fills whatever width it gets
while its text keeps its size; labels left of the axis hang out of the SVG (`svg.axes` in the style
sheet leaves the margin).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from strucprune_core.report.html.style import esc, tick

_LOG_RANGE = 30.0
_MAX_X_LABELS = 9
_ROW = 46
_TINY, _HUGE = 1e-290, 1e290


@dataclass(frozen=True, slots=True)
class Series:
    """One value per layer.

    Attributes:
        indices: Layer numbers, written along the axis.
        values: What is drawn; values that are not finite are left out.
        tips: Tooltip of each layer, plain text.
    """

    indices: Sequence[int]
    values: Sequence[float]
    tips: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar: its name, length, the length in words, and a colour class."""

    name: str
    value: float
    text: str
    style: str


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


def wants_log(values: Iterable[float]) -> bool:
    """Whether values are all positive and span more than a factor of 30."""
    finite = [value for value in values if _drawable(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_RANGE


def kept_width_chart(
    kept: Series, dense: Sequence[int], mean: tuple[float, str], label: str, height: int = 210
) -> str:
    """Draws the kept width of each layer in front of its dense width.

    Args:
        kept: Kept widths.
        dense: Dense width of each layer.
        mean: A dashed reference line: its value, and what it is called.
        label: What a screen reader says.
        height: Height of the plot in pixels.

    Returns:
        An SVG element.
    """
    axis = _width_axis([*kept.values, *map(float, dense)], height)
    slots = _Slots(len(kept.values))
    marks = [
        _layer(
            slots,
            position,
            axis,
            kept.tips[position],
            _column(slots, position, axis, float(dense[position]), "track")
            + _column(slots, position, axis, value, "bar"),
        )
        for position, value in enumerate(kept.values)
    ]
    value, name = mean
    y = _px(axis.y(min(max(value, axis.low), axis.high)))
    line = (
        f'<line class="mean" x1="0" x2="100%" y1="{y}" y2="{y}"><title>{esc(name)}</title></line>'
    )
    return _frame(axis, _x_labels(kept.indices, slots, height), "".join(marks) + line, label)


def layer_bars(series: Series, style: str, label: str, height: int = 150) -> str:
    """Draws one column per layer, from zero.

    Args:
        series: Values and tooltips.
        style: Colour class of the columns.
        label: What a screen reader says.
        height: Height of the plot in pixels.

    Returns:
        An SVG element.
    """
    axis = _linear_axis(series.values, height)
    slots = _Slots(len(series.values))
    marks = [
        _layer(
            slots,
            position,
            axis,
            series.tips[position],
            _column(slots, position, axis, value, style),
        )
        for position, value in enumerate(series.values)
    ]
    return _frame(axis, _x_labels(series.indices, slots, height), "".join(marks), label)


def layer_line(series: Series, style: str, label: str, height: int = 150) -> str:
    """Draws dots joined by a line, on a logarithmic axis where the values call for one.

    Args:
        series: Values and tooltips.
        style: Colour class of line and dots.
        label: What a screen reader says.
        height: Height of the plot in pixels.

    Returns:
        An SVG element.
    """
    make_axis = _log_axis if wants_log(series.values) else _linear_axis
    axis = make_axis(series.values, height)
    slots = _Slots(len(series.values))
    radius = "3" if len(series.values) <= 48 else "2"
    marks = [
        _layer(
            slots,
            position,
            axis,
            series.tips[position],
            f'<circle class="dot {esc(style)}" cx="{slots.middle(position)}"'
            f' cy="{_px(axis.y(value))}" r="{radius}"/>'
            if _drawable(value)
            else "",
        )
        for position, value in enumerate(series.values)
    ]
    body = _segments(series.values, slots, axis, style) + "".join(marks)
    return _frame(axis, _x_labels(series.indices, slots, height), body, label)


def horizontal_bars(bars: Sequence[Bar], label: str) -> str:
    """Draws named bars below each other, on one scale from zero.

    Args:
        bars: The bars, top to bottom.
        label: What a screen reader says.

    Returns:
        An SVG element.
    """
    longest = max((bar.value for bar in bars if _drawable(bar.value)), default=0.0) or 1.0
    rows = []
    for row, bar in enumerate(bars):
        top = row * _ROW
        value = bar.value if _drawable(bar.value) else 0.0
        share = _pct(max(0.0, value) / longest)
        rows.append(
            f"<g><title>{esc(bar.name)}: {esc(bar.text)}</title>"
            f'<text class="name" x="0" y="{top + 14}">{esc(bar.name)}</text>'
            f'<text class="strong" x="100%" y="{top + 14}" text-anchor="end">{esc(bar.text)}</text>'
            f'<rect class="rail" x="0" y="{top + 21}" width="100%" height="12" rx="4"/>'
            f'<rect class="{esc(bar.style)}" x="0" y="{top + 21}" width="{share}" height="12"'
            ' rx="4"/></g>'
        )
    height = max(1, len(bars) * _ROW - 12)
    return f'<svg role="img" aria-label="{esc(label)}" height="{height}">{"".join(rows)}</svg>'


def stacked_bar(bars: Sequence[Bar], label: str) -> str:
    """Draws one bar cut into shares of the total.

    Args:
        bars: The shares, left to right; negative ones count as zero.
        label: What a screen reader says.

    Returns:
        An SVG element.
    """
    lengths = [max(0.0, bar.value) if _drawable(bar.value) else 0.0 for bar in bars]
    total = sum(lengths) or 1.0
    parts, left = [], 0.0
    for bar, length in zip(bars, lengths, strict=True):
        parts.append(
            f'<rect class="{esc(bar.style)}" x="{_pct(left / total)}" y="0"'
            f' width="{_pct(length / total)}" height="26">'
            f"<title>{esc(bar.name)}: {esc(bar.text)}</title></rect>"
        )
        left += length
    return (
        f'<svg role="img" aria-label="{esc(label)}" height="26">'
        f'<rect class="rail" x="0" y="0" width="100%" height="26"/>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Slots:
    """Equal shares of the plot's width, one per layer."""

    layers: int

    @property
    def width(self) -> float:
        return 1.0 / max(1, self.layers)

    def left(self, position: int) -> str:
        return _pct(position * self.width)

    def middle(self, position: int) -> str:
        return _pct((position + 0.5) * self.width)


def _column(slots: _Slots, position: int, axis: Axis, value: float, style: str) -> str:
    """A column from zero to `value`."""
    if not _drawable(value):
        return ""
    wide = min(0.78 * slots.width, 0.08)
    left = (position + 0.5) * slots.width - wide / 2
    zero, end = axis.y(0.0), axis.y(value)
    top = min(zero, end)
    return (
        f'<rect class="{esc(style)}" x="{_pct(left)}" y="{_px(top)}" width="{_pct(wide)}"'
        f' height="{_px(abs(zero - end))}" rx="1.5"/>'
    )


def _layer(slots: _Slots, position: int, axis: Axis, tip: str, marks: str) -> str:
    """The marks of one layer, with a tooltip over the whole height of the plot."""
    return (
        f'<g><title>{esc(tip)}</title><rect class="hit" x="{slots.left(position)}" y="0"'
        f' width="{_pct(slots.width)}" height="{axis.height}"/>{marks}</g>'
    )


def _segments(values: Sequence[float], slots: _Slots, axis: Axis, style: str) -> str:
    """Straight lines between neighbours that can both be drawn."""
    lines = []
    for position in range(len(values) - 1):
        here, there = values[position], values[position + 1]
        if _drawable(here) and _drawable(there):
            lines.append(
                f'<line class="segment {esc(style)}"'
                f' x1="{slots.middle(position)}" y1="{_px(axis.y(here))}"'
                f' x2="{slots.middle(position + 1)}" y2="{_px(axis.y(there))}"/>'
            )
    return "".join(lines)


def _frame(axis: Axis, x_labels: str, body: str, label: str) -> str:
    """Grid, labels and marks in one SVG element."""
    lines = []
    for at in axis.ticks:
        y = axis.y(at)
        lines.append(
            f'<line class="grid-line" x1="0" x2="100%" y1="{_px(y)}" y2="{_px(y)}"/>'
            f'<text x="-8" y="{_px(y + 4)}" text-anchor="end">{esc(tick(at))}</text>'
        )
    base = f'<line class="base" x1="0" x2="100%" y1="{axis.height}" y2="{axis.height}"/>'
    return (
        f'<svg class="axes" role="img" aria-label="{esc(label)}" height="{axis.height + 22}">'
        f"{''.join(lines)}{body}{base}{x_labels}</svg>"
    )


def _x_labels(indices: Sequence[int], slots: _Slots, height: int) -> str:
    """Layer numbers, thinned to multiples of 1, 2, 5, 10, 20 or so."""
    step = _x_step(len(indices))
    return "".join(
        f'<text x="{slots.middle(position)}" y="{height + 16}" text-anchor="middle">{index}</text>'
        for position, index in enumerate(indices)
        if index % step == 0 or len(indices) <= _MAX_X_LABELS
    )


def _x_step(layers: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that leaves few enough labels."""
    step, leads = 1, cycle((2.0, 2.5, 2.0))
    while layers > step * _MAX_X_LABELS:
        step = int(step * next(leads))
    return step


def _linear_axis(values: Iterable[float], height: int) -> Axis:
    """An axis from zero to a round number above the largest value (and below the smallest)."""
    finite = [value for value in values if _drawable(value)]
    top, bottom = max([0.0, *finite]), min([0.0, *finite])
    if top - bottom < _TINY:
        top = 1.0
    step = _round_step((top - bottom) / 4)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], ticks=ticks, log=False, height=height)


def _width_axis(values: Iterable[float], height: int) -> Axis:
    """A linear axis that ends at the widest layer, so that dense columns fill the plot."""
    widths = list(values)
    axis, top = _linear_axis(widths, height), max(widths, default=0.0)
    if not 0 < top < axis.high:
        return axis
    return replace(axis, high=top, ticks=tuple(at for at in axis.ticks if at <= top))


def _round_step(rough: float) -> float:
    """The first of 1, 2, 2.5, 5 or 10 times a power of ten at or above `rough`."""
    scale = 10.0 ** math.floor(math.log10(rough))
    return next((lead * scale for lead in (1, 2, 2.5, 5) if rough <= lead * scale), 10 * scale)


def _log_axis(values: Iterable[float], height: int) -> Axis:
    """An axis around positive values, with powers of ten or 1-2-5 steps as ticks."""
    finite = [value for value in values if _drawable(value)]
    low, high = min(finite) / 1.15, max(finite) * 1.15
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    leads = (1, 3) if last - first <= 3 else (1,)
    every = max(1, -(-(last - first) // 6))
    ticks = (lead * 10.0**power for power in range(first, last + 1, every) for lead in leads)
    return Axis(low, high, tuple(at for at in ticks if low <= at <= high), log=True, height=height)


def _drawable(value: float) -> bool:
    return abs(value) < _HUGE  # false for NaN and infinities


def _pct(share: float) -> str:
    return f"{100 * share:.4g}%"


def _px(pixels: float) -> str:
    return f"{pixels:.4g}"
