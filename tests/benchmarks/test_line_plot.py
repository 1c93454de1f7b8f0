"""Lines over two axes: every name apart, what is beyond the axis cut off."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from benchmarks.line_plot import Axis, Line, Plot, sparsity_axis

SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    Line("a <b>", ((0.2, 25.0), (0.5, 60.0)), ours=False),
    Line("collapsed", ((0.2, 1e3), (0.5, float("inf"))), ours=False),
    Line("ours", ((0.2, 24.0), (0.5, 59.9)), ours=True, value="59.9"),
]
PERPLEXITY = Axis(20.0, 200.0, ((20.0, "20"), (200.0, "200")), log=True)


def test_names_are_apart() -> None:
    root = ElementTree.fromstring(Plot("title", sparsity_axis(LINES), PERPLEXITY).svg(LINES))
    names = {text.text or "": float(text.attrib["y"]) for text in root.iter(f"{SVG}text")}
    ends = sorted(names[name] for name in ("a <b>", "↑ collapsed", "ours 59.9"))
    assert min(later - sooner for sooner, later in pairwise(ends)) >= 14.0
    assert len(list(root.iter(f"{SVG}polyline"))) == 3


def test_axes_and_marks() -> None:
    plot = Plot("title", sparsity_axis(LINES), PERPLEXITY, dots=False, marks=(((0.5, 200.0), "m"),))
    root = ElementTree.fromstring(plot.svg(LINES))
    (mark,) = root.iter(f"{SVG}circle")
    grid = [line for line in root.iter(f"{SVG}line") if line.attrib["class"] == "grid"]
    assert float(mark.attrib["cx"]) == float(grid[0].attrib["x2"])
    assert float(mark.attrib["cy"]) == float(grid[1].attrib["y1"])
    assert [text.text for text in root.iter(f"{SVG}text")][1:6] == ["20", "200", "0%", "20%", "50%"]
