"""Lines over two axes as a standalone SVG, readable on white and on black.

Every line is named at its right end. Where a value is beyond the axis, the line leaves at the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as esc

_LEFT, _TOP, _WIDTH, _HEIGHT, _LABELS, _BELOW = 60, 44, 420, 360, 300, 48
_NAME_GAP = 16.0
_FARTHEST = 2.0  # Heights of the plot, for what is beyond the axis.
# Ours in turn, then the others.
_OURS = ("#0f9a8c", "#3b82d0", "#8b5cf6", "#c026a3")
_OTHERS = (
    "#b7791f", "#8a8f98", "#a16a4a", "#7a8b3c", "#b8476a", "#5f8ea0", "#c2751a", "#6b7280",
    "#8c6bb1", "#5f9ea0",
)  # fmt: skip
_STYLE = (
    "svg{font:12px system-ui,sans-serif}.paper{fill:#fff}text{fill:#3d4450}.grid{stroke:#e4e7eb}"
    ".line{fill:none;stroke-width:1.5}.ours{stroke-width:3}.title{font-size:14px;font-weight:600}"
    ".end{font-weight:600}.mark{fill:#111827;stroke:#fff}"
    "@media (prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#c9d1d9}"
    ".grid{stroke:#2b323b}.mark{fill:#f0f3f6;stroke:#0d1117}}"
)
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Points ascending in x; `value` stands behind the title."""

    title: str
    points: tuple[Point, ...]
    ours: bool
    value: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis reaches, and its labels by value."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """How far along it a value is: 0 at its low end, 1 at its high one."""
        if not math.isfinite(value):
            return _FARTHEST
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return min((at - low) / (high - low), _FARTHEST)


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of lines.

    Attributes:
        title: What it shows.
        x: The axis below.
        y: The axis at the left.
        dots: Whether points of lines are shown.
        marks: Single points with their descriptions.
        below: Name of the axis below.
    """

    title: str
    x: Axis
    y: Axis
    dots: bool = True
    marks: tuple[tuple[Point, str], ...] = ()
    below: str = ""

    def svg(self, lines: Sequence[Line]) -> str:
        """An SVG document."""
        ours, others = iter(_OURS), iter(_OTHERS)
        colours = [next(ours if line.ours else others) for line in lines]
        width, height = _LEFT + _WIDTH + _LABELS, _TOP + _HEIGHT + _BELOW
        drawn = [self._line(line, colour) for line, colour in zip(lines, colours, strict=True)]
        in_front = sorted(range(len(lines)), key=lambda index: lines[index].ours)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
            f' aria-label="{esc(self.title)}"><style>{_STYLE}</style>'
            f'<rect class="paper" width="{width}" height="{height}" rx="6"/>'
            f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH + 6}"'
            f' height="{_HEIGHT}"/></clipPath>'
            f'<text class="title" x="{_LEFT}" y="24">{esc(self.title)}</text>'
            f"{self._grid()}{''.join(drawn[index] for index in in_front)}{self._marks()}"
            f"{self._names(lines, colours)}</svg>\n"
        )

    def _place(self, point: Point) -> Point:
        """Pixels from the left and from the top."""
        x, y = point
        return _LEFT + _WIDTH * self.x.share(x), _TOP + _HEIGHT * (1 - self.y.share(y))

    def _grid(self) -> str:
        right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
        rows = "".join(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{esc(label)}</text>'
            for at, label in self.y.ticks
            for _, y in [self._place((self.x.low, at))]
        )
        columns = "".join(
            f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{esc(label)}</text>'
            for at, label in self.x.ticks
            for x, _ in [self._place((at, self.y.low))]
        )
        return (
            f'{rows}{columns}<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 40}"'
            f' text-anchor="middle">{esc(self.below)}</text>'
        )

    def _line(self, line: Line, colour: str) -> str:
        places = [self._place(point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        circles = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
        style = "line ours" if line.ours else "line"
        return (
            f'<g clip-path="url(#plot)" stroke="{colour}"><title>{esc(line.title)}</title>'
            f'<polyline class="{style}" points="{path}"/>'
            f'<g fill="{colour}">{"".join(circles) if self.dots else ""}</g></g>'
        )

    def _marks(self) -> str:
        return "".join(
            f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{esc(what)}</title>'
            "</circle>"
            for point, what in self.marks
            for x, y in [self._place(point)]
        )

    def _names(self, lines: Sequence[Line], colours: Sequence[str]) -> str:
        """Names in the order of the lines' ends, and apart from each other."""
        ends = sorted((self._place(line.points[-1])[1], index) for index, line in enumerate(lines))
        # No name may stand so low that those below it find no room.
        bottom = float(_TOP + _HEIGHT)
        parts, above = [], -math.inf
        for rank, (end, index) in enumerate(ends):
            line = lines[index]
            lowest = bottom - _NAME_GAP * (len(ends) - 1 - rank)
            y = above = min(max(end, float(_TOP), above + _NAME_GAP), lowest)
            arrow = "↑ " if end < _TOP else ""
            name = f"{arrow}{line.title} {line.value}".rstrip()
            parts.append(
                f'<text class="{"end" if line.ours else ""}" x="{_LEFT + _WIDTH + 14}"'
                f' y="{y + 4:.1f}" style="fill:{colours[index]}">{esc(name)}</text>'
            )
        return "".join(parts)


def sparsity_axis(lines: Sequence[Line]) -> Axis:
    """The axis of plots over sparsity: from 0 to the largest, labels at what was measured."""
    levels = sorted({0.0} | {sparsity for line in lines for sparsity, _ in line.points})
    return Axis(0.0, levels[-1], tuple((level, f"{level:.0%}") for level in levels))
