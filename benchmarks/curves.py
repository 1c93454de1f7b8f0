"""The plot and the table of docs/sparsity.md, from the results of `benchmarks.rivals`.

    .venv/bin/python -m benchmarks.curves

Perplexity of the pruned model over that of the dense one. In the plot, methods that give the same
results to the last digit share a line, and those that are off the scale at every level are left
out; the table has only what is an option of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strucprune_core.report_page.style import esc

RESULTS = Path(__file__).parent / "results/rivals.json"
DOCS = Path(__file__).parents[1] / "docs"
PLOT, PAGE = DOCS / "curves.svg", DOCS / "sparsity.md"
TITLE = "Perplexity, pruned / dense, over the share of FFN channels removed"

_LEFT, _TOP, _WIDTH, _HEIGHT, _LABELS = 48, 44, 400, 340, 300
_HIGHEST = 4.0
# By method: the option that gives it. The uniform one is the rivals' implementation of it.
OPTIONS = {
    "ours": "the default",
    "ours-softmax": "`--allocation softmax`",
    "obs-ridge": "`--allocation uniform`",
    "ours-admm": "`--solver admm`",
    "ours-recover": "`--recover-steps 100`",
    "ours-distill": "`--recover-steps 100 --distill-steps 40`",
}
_TABLE = re.compile(r"(?<=<!-- made by python -m benchmarks.curves -->\n)(?:\|.*\n)+")
_TICKS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
_LABEL_GAP = 16.0
# They read on white and on black. Ours in turn, then the others.
_OURS = ("#0f9a8c", "#3b82d0", "#8b5cf6", "#c026a3")
_OTHERS = ("#b7791f", "#8a8f98", "#a16a4a", "#7a8b3c", "#b8476a", "#5f8ea0")
_STYLE = (
    "svg{font:12px system-ui,sans-serif}.paper{fill:#fff}text{fill:#3d4450}.grid{stroke:#e4e7eb}"
    ".line{fill:none;stroke-width:1.5}.ours{stroke-width:3}.title{font-size:14px;font-weight:600}"
    ".end{font-weight:600}"
    "@media (prefers-color-scheme:dark){.paper{fill:#0d1117}text{fill:#c9d1d9}"
    ".grid{stroke:#2b323b}}"
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One method, or several that give the same: (sparsity, ratio), ascending."""

    title: str
    points: tuple[tuple[float, float], ...]
    ours: bool


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The lines of the plot, ours first, the best first, from the results' rows."""
    found: dict[tuple[tuple[float, float], ...], Curve] = {}
    for title in dict.fromkeys(row["title"] for row in rows if row["scope"] == "ffn"):
        own = [row for row in rows if row["title"] == title and row["scope"] == "ffn"]
        points = tuple(sorted((row["sparsity"], row["ratio"]) for row in own))
        if min(ratio for _, ratio in points) <= _HIGHEST:
            found.setdefault(points, Curve(title, points, own[0]["method"].startswith("ours")))
    return sorted(found.values(), key=lambda curve: (not curve.ours, curve.points[-1][1]))


def plot(lines: Sequence[Curve]) -> str:
    """An SVG document."""
    widest = max(sparsity for line in lines for sparsity, _ in line.points)
    ours, others = iter(_OURS), iter(_OTHERS)
    colours = [next(ours if line.ours else others) for line in lines]
    width, height = _LEFT + _WIDTH + _LABELS, _TOP + _HEIGHT + 40
    # Ours last, above the others.
    drawn = [_line(line, colour, widest) for line, colour in zip(lines, colours, strict=True)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{TITLE}"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}" rx="6"/>'
        f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH + 6}"'
        f' height="{_HEIGHT}"/></clipPath><text class="title" x="{_LEFT}" y="24">{TITLE}</text>'
        f"{_grid()}{_levels(lines, widest)}{''.join(reversed(drawn))}"
        f"{_names(lines, colours)}</svg>\n"
    )


def _grid() -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{_y(at):.1f}"'
        f' y2="{_y(at):.1f}"/><text x="{_LEFT - 8}" y="{_y(at) + 4:.1f}"'
        f' text-anchor="end">{at:.1f}</text>'
        for at in _TICKS
    )


def _levels(lines: Sequence[Curve], widest: float) -> str:
    levels = sorted({0.0} | {sparsity for line in lines for sparsity, _ in line.points})
    return "".join(
        f'<text x="{_x(level, widest):.1f}" y="{_TOP + _HEIGHT + 22}" text-anchor="middle">'
        f"{level:.0%}</text>"
        for level in levels
    )


def _line(line: Curve, colour: str, widest: float) -> str:
    places = [(_x(x, widest), _y(y)) for x, y in ((0.0, 1.0), *line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places[1:])
    style = "line ours" if line.ours else "line"
    return (
        f'<g clip-path="url(#plot)" stroke="{colour}"><title>{esc(line.title)}</title>'
        f'<polyline class="{style}" points="{path}"/><g fill="{colour}">{dots}</g></g>'
    )


def _names(lines: Sequence[Curve], colours: Sequence[str]) -> str:
    """Names at the right, in the order of the lines' ends and apart from each other."""
    ends = sorted(range(len(lines)), key=lambda index: -lines[index].points[-1][1])
    parts, above = [], -math.inf
    # No name may stand so low that those below it find no room.
    lowest = [_TOP + _HEIGHT - _LABEL_GAP * (len(ends) - 1 - rank) for rank in range(len(ends))]
    for rank, index in enumerate(ends):
        line, ratio = lines[index], lines[index].points[-1][1]
        y = above = min(max(_y(ratio), float(_TOP), above + _LABEL_GAP), lowest[rank])
        arrow = "↑ " if ratio > _HIGHEST else ""
        parts.append(
            f'<text class="{"end" if line.ours else ""}" x="{_LEFT + _WIDTH + 14}"'
            f' y="{y + 4:.1f}" style="fill:{colours[index]}">'
            f"{arrow}{esc(line.title)} {ratio:.2f}</text>"
        )
    return "".join(parts)


def _x(sparsity: float, widest: float) -> float:
    return _LEFT + _WIDTH * sparsity / widest


def _y(ratio: float) -> float:
    """Pixels from the top; a long way above it for what the axis does not reach."""
    return _TOP + _HEIGHT * (_HIGHEST - min(ratio, 2 * _HIGHEST)) / (_HIGHEST - 1.0)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each option of ours gives and costs, as Markdown."""
    ffn = [row for row in rows if row["scope"] == "ffn"]
    levels = sorted({row["sparsity"] for row in ffn})
    middle = levels[len(levels) // 2]
    heads = ("", *(f"{level:.0%}" for level in levels), f"CPU time at {middle:.0%}", "peak memory")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, option in OPTIONS.items():
        own = {row["sparsity"]: row for row in ffn if row["method"] == method}
        if own:
            ratios = [f"{own[level]['ratio']:.3f}" if level in own else "" for level in levels]
            last = own[middle]
            cost = (f"{last['cpu_seconds']:.0f} s", f"{last['host_peak_bytes'] / 1e6:.0f} MB")
            lines.append(f"| {' | '.join((option, *ratios, *cost))} |")
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with the table as it should be."""
    return _TABLE.sub(lambda _: table(rows), PAGE.read_text(encoding="utf-8"))


def main() -> None:
    """Write both."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    PLOT.write_text(plot(curves(rows)), encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
