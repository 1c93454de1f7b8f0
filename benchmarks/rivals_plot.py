"""The plot of `benchmarks.rivals`: perplexity (logarithmic) over sparsity, a standalone SVG.

Lines start at the dense model and leave through the top where a method collapses; every line is
named at its right end, with its last value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strucprune_core.report_page.plots import Axis
from strucprune_core.report_page.style import esc, tick

_LEFT, _TOP, _WIDTH, _HEIGHT, _LABELS = 52, 44, 420, 380, 300
_HIGHEST = 10.0  # The axis ends at this multiple of the dense perplexity.
_LABEL_GAP = 15.0
_OURS = "#0f766e"
_COLOURS = (
    "#8a8f98", "#b58b5a", "#c2751a", "#b8476a", "#8c6bb1", "#6556c4", "#3b76b0", "#5f9ea0",
    "#7a8b3c",
)  # fmt: skip
_LEADS = (1, 1.5, 2, 3, 5, 7)
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#3d4450}"
    ".grid{stroke:#e6e8ec}.line{fill:none;stroke-width:1.6}.ours{stroke-width:3}"
    ".title{font-size:14px;font-weight:600}.end{font-weight:600}"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One method: (sparsity, perplexity), ascending, without the dense point."""

    title: str
    points: tuple[tuple[float, float], ...]
    ours: bool


def sparsity_plot(lines: Sequence[Line], dense: float) -> str:
    """An SVG document.

    Args:
        lines: The methods.
        dense: Perplexity of the dense model.
    """
    if not lines:
        return ""
    axis = _axis(dense)
    widest = max(sparsity for line in lines for sparsity, _ in line.points)
    body = "".join(
        _line(line, _colour(line, index), axis, dense, widest) for index, line in enumerate(lines)
    )
    title = "Perplexity over the share of FFN channels removed"
    width, height = _LEFT + _WIDTH + _LABELS, _TOP + _HEIGHT + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{title}"><style>{_STYLE}</style>'
        f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}"/>'
        f'</clipPath><text class="title" x="{_LEFT}" y="22">{title}</text>'
        f"{_grid(axis)}{_x_labels(lines, widest)}{body}{_names(lines, axis)}</svg>\n"
    )


def _axis(dense: float) -> Axis:
    low, high = dense / 1.1, dense * _HIGHEST
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (lead * 10.0**power for power in powers for lead in _LEADS)
    shown = tuple(at for at in ticks if low <= at <= high)
    return Axis(low, high, shown, log=True, height=_HEIGHT)


def _grid(axis: Axis) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{esc(tick(at))}</text>'
        for at in axis.ticks
        for y in [_TOP + axis.y(at)]
    )


def _x_labels(lines: Sequence[Line], widest: float) -> str:
    levels = sorted({0.0} | {sparsity for line in lines for sparsity, _ in line.points})
    return "".join(
        f'<text x="{_x(level, widest):.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">'
        f"{level:.0%}</text>"
        for level in levels
    )


def _line(line: Line, colour: str, axis: Axis, dense: float, widest: float) -> str:
    places = [(_x(x, widest), _y(y, axis)) for x, y in ((0.0, dense), *line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = "line ours" if line.ours else "line"
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places[1:])
    return (
        f'<g clip-path="url(#plot)" stroke="{colour}"><title>{esc(line.title)}</title>'
        f'<polyline class="{style}" points="{path}"/><g fill="{colour}">{dots}</g></g>'
    )


def _names(lines: Sequence[Line], axis: Axis) -> str:
    """Names at the right, in the order of the lines' ends and apart from each other."""
    ends = sorted((_y(line.points[-1][1], axis), index) for index, line in enumerate(lines))
    parts = []
    room = float(_TOP + _HEIGHT)
    floor = [room - _LABEL_GAP * (len(ends) - 1 - rank) for rank in range(len(ends))]
    above = -math.inf
    for (end, index), lowest in zip(ends, floor, strict=True):
        line = lines[index]
        y = above = min(max(end, float(_TOP), above + _LABEL_GAP), lowest)
        value = line.points[-1][1]
        shown = f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
        style = ' class="end"' if line.ours else ""
        arrow = "↑ " if end < _TOP else ""
        parts.append(
            f'<text{style} x="{_LEFT + _WIDTH + 10}" y="{y + 4:.1f}"'
            f' style="fill:{_colour(line, index)}">{arrow}{esc(line.title)} {shown}</text>'
        )
    return "".join(parts)


def _x(sparsity: float, widest: float) -> float:
    return _LEFT + _WIDTH * sparsity / widest


def _y(perplexity: float, axis: Axis) -> float:
    """Pixels from the top; a long way above it for what the axis does not reach."""
    return _TOP + axis.y(min(perplexity, axis.high * 10) if math.isfinite(perplexity) else 1e4)


def _colour(line: Line, index: int) -> str:
    return _OURS if line.ours else _COLOURS[index % len(_COLOURS)]
