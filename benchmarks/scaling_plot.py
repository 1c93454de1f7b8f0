"""The plot of `benchmarks.memory_scaling`: bytes over parameters, both logarithmic, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strucprune_core.report_page.style import esc

_LEFT, _TOP, _WIDTH, _HEIGHT, _LABELS = 64, 44, 440, 360, 230
_OURS, _OTHERS = ("#0f766e", "#3b76b0"), ("#b58b5a", "#8a8f98", "#c2751a", "#6b7280")
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#3d4450}"
    ".grid{stroke:#e6e8ec}.line{fill:none;stroke-width:1.6}.ours{stroke-width:3}"
    ".title{font-size:14px;font-weight:600}"
)
_TITLE = "Peak memory on the device over the size of the model"
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


@dataclass(frozen=True, slots=True)
class Curve:
    """(parameters, bytes), ascending."""

    title: str
    points: tuple[tuple[int, int], ...]
    ours: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """The range of both axes, powers of ten."""

    left: int
    right: int
    low: int
    high: int

    def x(self, value: float) -> float:
        return _LEFT + _WIDTH * (math.log10(value) - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return _TOP + _HEIGHT * (self.high - math.log10(value)) / (self.high - self.low)


def scaling_plot(curves: Sequence[Curve], measured: Sequence[tuple[int, int]]) -> str:
    """An SVG document; `measured` points are dots."""
    sizes = [point[0] for curve in curves for point in curve.points]
    values = [point[1] for curve in curves for point in curve.points]
    frame = _Frame(
        math.floor(math.log10(min(sizes))),
        math.ceil(math.log10(max(sizes))),
        math.floor(math.log10(min(values))),
        math.ceil(math.log10(max(values))),
    )
    ours, others = iter(_OURS), iter(_OTHERS)
    colours = [next(ours if curve.ours else others) for curve in curves]
    lines = "".join(
        _line(curve, colour, frame) for curve, colour in zip(curves, colours, strict=True)
    )
    dots = "".join(
        f'<circle cx="{frame.x(size):.1f}" cy="{frame.y(value):.1f}" r="4" fill="#111827">'
        f"<title>measured: {_bytes(value)}</title></circle>"
        for size, value in measured
    )
    width, height = _LEFT + _WIDTH + _LABELS, _TOP + _HEIGHT + 48
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{_TITLE}"><style>{_STYLE}</style>'
        f'<text class="title" x="{_LEFT}" y="22">{_TITLE}</text>'
        f"{_grid(frame, measured=bool(measured))}{lines}{dots}"
        f"{_names(curves, colours, frame)}</svg>\n"
    )


def _grid(frame: _Frame, *, measured: bool) -> str:
    rows = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_bytes(10.0**power)}</text>'
        for power in range(frame.low, frame.high + 1)
        for y in [frame.y(10.0**power)]
    )
    bottom = _TOP + _HEIGHT
    columns = "".join(
        f'<text x="{frame.x(10.0**power):.1f}" y="{bottom + 20}" text-anchor="middle">'
        f"{10.0 ** (power - 9):g} B</text>"
        for power in range(frame.left, frame.right + 1)
    )
    middle = _LEFT + _WIDTH / 2
    return (
        f'{rows}{columns}<text x="{middle}" y="{bottom + 40}" text-anchor="middle">'
        f"parameters{' (dots: measured)' if measured else ''}</text>"
    )


def _line(curve: Curve, colour: str, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(size):.1f},{frame.y(value):.1f}" for size, value in curve.points)
    style = "line ours" if curve.ours else "line"
    return f'<polyline class="{style}" stroke="{colour}" points="{path}"/>'


def _names(curves: Sequence[Curve], colours: Sequence[str], frame: _Frame) -> str:
    """Titles beside the ends of the lines, apart from each other."""
    ends = sorted(
        (frame.y(curve.points[-1][1]), curve.title, colour)
        for curve, colour in zip(curves, colours, strict=True)
    )
    parts, above = [], -math.inf
    for end, title, colour in ends:
        above = max(end, above + 15)
        parts.append(
            f'<text x="{_LEFT + _WIDTH + 10}" y="{above + 4:.1f}" style="fill:{colour}">'
            f"{esc(title)}</text>"
        )
    return "".join(parts)


def _bytes(size: float) -> str:
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size / 1e3:g} kB"
