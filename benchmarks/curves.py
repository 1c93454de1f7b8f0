"""The plot and the table of docs/sparsity.md, from the results of `benchmarks.rivals`.

    .venv/bin/python -m benchmarks.curves

Both show the perplexity of the pruned model over that of the dense one. In the plot, methods that
give the same results to the last digit share a line, and those that are off the scale at every
level are left out. The table has only options of StrucPrune.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.line_plot import Axis, Line, Plot, sparsity_axis

RESULTS = Path(__file__).parent / "results/rivals.json"
DOCS = Path(__file__).parents[1] / "docs"
PLOT, PAGE = DOCS / "curves.svg", DOCS / "sparsity.md"
TITLE = "Perplexity, pruned / dense, over the share of FFN channels removed"

HIGHEST = 4.0
RATIOS = Axis(1.0, HIGHEST, tuple((at / 2, f"{at / 2:.1f}") for at in range(2, 9)))
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


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines of the plot, ours first, the best first, from the results' rows."""
    found: dict[tuple[tuple[float, float], ...], Line] = {}
    for title in dict.fromkeys(row["title"] for row in rows if row["scope"] == "ffn"):
        own = [row for row in rows if row["title"] == title and row["scope"] == "ffn"]
        points = tuple(sorted((row["sparsity"], row["ratio"]) for row in own))
        if min(ratio for _, ratio in points) <= HIGHEST:
            ours, value = own[0]["method"].startswith("ours"), f"{points[-1][1]:.2f}"
            found.setdefault(points, Line(title, ((0.0, 1.0), *points), ours, value))
    return sorted(found.values(), key=lambda line: (not line.ours, line.points[-1][1]))


def plot(lines: Sequence[Line]) -> str:
    """An SVG document."""
    return Plot(TITLE, sparsity_axis(lines), RATIOS).svg(lines)


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
