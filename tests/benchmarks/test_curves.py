"""The plot and the table of docs/sparsity.md are those of the results."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from benchmarks.curves import PAGE, PLOT, RESULTS, curves, page, plot, table

SVG = "{http://www.w3.org/2000/svg}"


def row(method: str, sparsity: float, ratio: float, scope: str = "ffn") -> dict[str, object]:
    return {
        "method": method, "title": method, "scope": scope, "sparsity": sparsity, "ratio": ratio,
    }  # fmt: skip


def test_plot_and_table_are_of_the_results() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert plot(curves(rows)) == PLOT.read_text(encoding="utf-8"), (
        "run: python -m benchmarks.curves"
    )
    assert page(rows) == PAGE.read_text(encoding="utf-8"), "run: python -m benchmarks.curves"
    assert table(rows) in page(rows)


def test_lines_that_say_something() -> None:
    rows = [
        row("magnitude", 0.3, 1000.0),
        row("wanda", 0.5, 5.0), row("wanda", 0.3, 2.0),
        row("ours", 0.3, 1.4), row("ours", 0.5, 2.1), row("ours-same", 0.3, 1.4),
        row("ours-same", 0.5, 2.1), row("ours", 0.2, 1.1, "body"),
    ]  # fmt: skip
    found = curves(rows)
    assert [line.title for line in found] == ["ours", "wanda"]
    assert found[0].points == ((0.0, 1.0), (0.3, 1.4), (0.5, 2.1))
    assert found[1].points == ((0.0, 1.0), (0.3, 2.0), (0.5, 5.0))
    root = ElementTree.fromstring(plot(found))
    names = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert names[-2:] == ["↑ wanda 5.00", "ours 2.10"]


def test_the_table_has_what_was_measured() -> None:
    cost = {"cpu_seconds": 9.9, "host_peak_bytes": 5e8}
    rows = [row("ours", 0.3, 1.4) | cost, row("ours", 0.5, 2.1) | cost, row("wanda", 0.3, 2) | cost]
    rows.append(row("ours-admm", 0.5, 2.1) | cost)
    assert table(rows).splitlines()[2:] == [
        "| the default | 1.400 | 2.100 | 10 s | 500 MB |",
        "| `--solver admm` |  | 2.100 | 10 s | 500 MB |",
    ]
