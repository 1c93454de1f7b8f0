"""What the page shows: numbers, rows and plots, before any template."""

from __future__ import annotations

import math

import pytest

from strucprune_core.report.document import MemoryFigure, Report
from strucprune_core.report.html.axes import fitting_axis, linear_axis, width_axis
from strucprune_core.report.html.charts import kept_share, kept_widths, layer_chart
from strucprune_core.report.html.summary import Headline, headlines
from strucprune_core.report.html.tables import layer_table
from strucprune_core.report.html.view import flat, view_of
from strucprune_core.report.numbers import ABSENT, number
from tests.support.reports import make_layers, make_report


def headline(report: Report, title: str) -> Headline:
    (found,) = [figure for figure in headlines(report) if title in figure.title]
    return found


def test_perplexity_that_rose_is_bad_and_that_fell_good() -> None:
    report = make_report()
    assert report.perplexity is not None
    rose = headline(report, "Perplexity")
    assert (rose.now, rose.was, rose.change, rose.tone) == ("27.91", "from 23.49", "+18.8%", "bad")
    better = report.perplexity.model_copy(update={"after": 20.0})
    assert headline(make_report(perplexity=better), "Perplexity").tone == "good"
    none = headline(make_report(perplexity=None), "Perplexity")
    assert (none.now, none.was, none.change) == (ABSENT, "not evaluated", ABSENT)


@pytest.mark.parametrize(
    ("host", "device", "title", "was", "note"),
    [
        ((800, 700), (100, None), "Peak host memory", "800 B predicted", "70% of"),
        ((800, 700), (100, 900), "Peak device memory", "100 B predicted", "90% of"),
        ((800, None), (100, None), "Peak device memory", "predicted, not measured", "10% of"),
        ((8000, None), (0, None), "Peak host memory", "predicted, not measured", "8.0 times"),
    ],
)
def test_the_headline_of_memory(
    host: tuple[int, int | None],
    device: tuple[int, int | None],
    title: str,
    was: str,
    note: str,
) -> None:
    memory = make_report().memory.model_copy(
        update={
            "host_peak_bytes": MemoryFigure(predicted=host[0], measured=host[1]),
            "device_peak_bytes": MemoryFigure(predicted=device[0], measured=device[1]),
            "whole_model_bytes": 1_000,
        }
    )
    found = headline(make_report(memory=memory), "memory")
    assert (found.title, found.was.replace("\u00a0", " ")) == (title, was)
    assert found.note.startswith(note)


def test_kept_widths_are_those_of_the_layers_whatever_else_was_removed() -> None:
    layers = make_layers(4, width=100)
    report = make_report(4).model_copy(update={"layers": layers})
    gone = report.sparsity.model_copy(update={"reached": 0.9, "kv_heads_removed": 6})
    view = view_of(report.model_copy(update={"sparsity": gone}))
    kept = sum(layer.width_after for layer in layers) / 400
    assert view.kept_share == f"{100 * kept:.1f}%"
    assert view.kept_widths.mean == pytest.approx(100 * kept)
    assert [mark.heights["bar"] for mark in view.kept_widths.marks] == [
        layer.width_after for layer in layers
    ]
    assert kept_share([]) == ABSENT
    assert kept_widths([]).mean == 0


def test_unknown_is_a_word_and_not_a_number() -> None:
    assert number(None) == "unknown"
    assert number(None, none=ABSENT) == number(math.nan) == ABSENT
    chart = layer_chart("Error", {0: 1.0, 1: None, 2: math.nan}, "rose", line=True)
    assert chart.unknown == 1
    assert chart.extent == "from 1.000 to 1.000"
    assert [mark.text for mark in chart.marks] == ["error 1.000", "error unknown", "error –"]
    layers = [row.model_copy(update={"reconstruction_error": None}) for row in make_layers(2)]
    table = layer_table(layers)
    assert [row[table.head.index("Error")] for row in table.rows] == ["unknown"] * 2


@pytest.mark.parametrize(
    ("layers", "step"), [(1, 1), (9, 1), (10, 2), (30, 5), (81, 10), (126, 20)]
)
def test_layer_numbers_are_thinned_to_round_ones(layers: int, step: int) -> None:
    chart = layer_chart("Time", dict.fromkeys(range(layers), 1.0), "blue")
    assert [n for n in range(layers) if chart.numbers(n)] == list(range(0, layers, step))


def test_axes_begin_and_end_at_round_numbers() -> None:
    axis = linear_axis([0.3, 1.7], height=100)
    assert (axis.low, axis.high, axis.ticks) == (0, 2, (0, 0.5, 1, 1.5, 2))
    assert (axis.y(0), axis.y(1), axis.y(2)) == (100, 50, 0)
    assert linear_axis([-1.0, 3.0], height=100).low == -1
    assert width_axis([1536, 1400], height=100).high == 1536
    log = fitting_axis([0.02, None, 2.0], height=100)
    assert log.log
    assert log.ticks == pytest.approx((0.03, 0.1, 0.3, 1))


def test_values_that_are_nothing_but_rounding_do_not_stretch_the_axis() -> None:
    axis = fitting_axis([2e-15, 1e-15, 0.004, 0.006], height=100)
    assert not axis.log
    assert axis.low == 0
    assert axis.high == pytest.approx(0.006)
    assert fitting_axis([1e-9, 0.004], height=100).log


def test_a_specification_is_listed_leaf_by_leaf() -> None:
    spec = {"model": {"uri": "s3://a", "more": {}}, "labels": {"a": "é"}, "list": [1, None]}
    assert flat(spec) == {
        "model.uri": "s3://a",
        "model.more": "{}",
        "labels.a": "é",
        "list": "[1, null]",
    }
