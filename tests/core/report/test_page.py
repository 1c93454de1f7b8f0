"""The HTML report: well-formed, escaped, self-contained, complete at every shape of report."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from strucprune_core.report import numbers
from strucprune_core.report.document import (
    Continuation,
    DistillationReport,
    MemoryFigure,
    MemorySummary,
    Report,
    RoundReport,
    SampleReport,
    SizeSummary,
)
from strucprune_core.report.html import render_html
from strucprune_core.report.html.axes import wants_log
from strucprune_core.report.html.bars import Bar, Bars
from strucprune_core.report.html.charts import layer_chart
from strucprune_core.report.html.render import environment
from tests.support.report_page import check_page, svgs
from tests.support.reports import HOSTILE, made_speed, make_layers, make_report


@pytest.mark.parametrize("layers", [1, 2, 30, 126])
def test_renders_every_depth(layers: int) -> None:
    page = render_html(make_report(layers))
    check_page(page)
    charts = [plot for plot in svgs(page) if plot.get("class") == "axes"]
    bars = [node for node in charts[0].iter("rect") if node.get("class") == "bar"]
    assert len(bars) == layers
    assert len(charts) == 5
    for plot in charts:
        labels = [node for node in plot.iter("text") if node.get("text-anchor") == "middle"]
        assert 1 <= len(labels) <= 10


def test_says_everything_the_report_holds() -> None:
    report = make_report()
    text = check_page(render_html(report)).text
    quality = report.perplexity
    assert quality is not None
    expected = [
        report.model.uri,
        report.model.digest,
        "1729",
        report.environment.torch,
        report.environment.python,
        report.environment.platform,
        f"{report.before.parameters:,}",
        f"{report.after.parameters:,}",
        f"{report.before.bytes:,}",
        f"{report.after.flops_per_token:,}",
        "23.49",
        "27.91",
        "24,552",
        "1,024 tokens",
        quality.text_sha256,
        "161,000,000",
        "774,500,000",
        f"{report.memory.whole_model_bytes:,}",
        report.memory.note,
        "pruning.allocation",
        "1 min 28 s".replace(" ", numbers.NBSP),
        *report.warnings,
        *[entry.sha256 for entry in report.files],
        *[phase.name for phase in report.phases],
        *[numbers.number(layer.reconstruction_error) for layer in report.layers],
        *[f"{layer.width_after:,}" for layer in report.layers],
    ]
    assert [value for value in expected if value not in text] == []


def test_ffn_flops_follow_from_the_channels() -> None:
    report = make_report()
    text = check_page(render_html(report)).text
    assert f"{2 * 3 * 576 * report.before.ffn_channels:,}" in text
    assert f"{2 * 3 * 576 * report.after.ffn_channels:,}" in text


def test_rounds_are_shown_where_there_were_several() -> None:
    rounds = [
        RoundReport(
            price=price,
            temperature=None,
            predicted_damage=0.5,
            widths=[9],
            kl=kl,
            used=kl == 0.3125,
        )
        for price, kl in ((1.5e-8, 0.4375), (2.5e-8, 0.3125))
    ]
    page = render_html(make_report(rounds=rounds))
    assert "2 (used)" in page
    assert "1 (used)" not in page
    assert "0.4375" in page
    assert "(used)" not in render_html(make_report(rounds=rounds[1:]))


def test_without_perplexity() -> None:
    parsed = check_page(render_html(make_report(perplexity=None)))
    assert "not evaluated" in parsed.text


def test_energy_axis_is_logarithmic_only_over_a_wide_range() -> None:
    assert "logarithmic" in render_html(make_report())
    even = [layer.model_copy(update={"energy": 1.0}) for layer in make_layers(30)]
    assert "logarithmic" not in render_html(
        make_report(layers=30).model_copy(update={"layers": even})
    )
    assert not wants_log([0.0, 100.0])
    assert not wants_log([])
    assert wants_log([1.0, 31.0])


@pytest.mark.parametrize(
    "value", [0.0, 1.0, 5e-324, 1e-30, 1e280, 1.7e308, math.nan, math.inf, -1.0]
)
def test_equal_and_extreme_values(value: float) -> None:
    fields = ("energy", "predicted_damage", "reconstruction_error", "seconds")
    layers = [row.model_copy(update=dict.fromkeys(fields, value)) for row in make_layers(5)]
    check_page(render_html(make_report(5).model_copy(update={"layers": layers})))
    layers[2] = layers[2].model_copy(update=dict.fromkeys(fields, 3.0))
    check_page(render_html(make_report(5).model_copy(update={"layers": layers})))


def test_nothing_removed_and_nothing_known() -> None:
    report = make_report(3)
    empty = SizeSummary(
        parameters=0,
        bytes=0,
        ffn_channels=0,
        query_heads=0,
        kv_heads=0,
        kv_cache_bytes_per_token=0,
        flops_per_token=0,
    )
    nothing = MemoryFigure(predicted=0, measured=None)
    bare = report.model_copy(
        update={
            "layers": [],
            "spec": {"pruning": 3, "empty": {}},
            "before": empty,
            "after": empty,
            "phases": [],
            "files": [],
            "warnings": [],
            "memory": MemorySummary(
                host_peak_bytes=nothing, device_peak_bytes=nothing, whole_model_bytes=0, note=""
            ),
        }
    )
    parsed = check_page(render_html(bare))
    assert "warning" not in parsed.text
    check_page(render_html(report.model_copy(update={"after": report.before})))


def test_a_cpu_job_shows_no_device_bar() -> None:
    memory = make_report().memory.model_copy(
        update={"device_peak_bytes": MemoryFigure(predicted=0, measured=None)}
    )
    assert "Device peak" not in check_page(render_html(make_report(memory=memory))).text
    assert "Device peak, predicted" in check_page(render_html(make_report())).text


def test_names_break_between_words_on_a_phone() -> None:
    page = render_html(make_report())
    assert "<dt>pruning.<wbr>sparsity</dt>" in page
    assert "model.<wbr>safetensors</th>" in page


def test_measured_device_memory_is_the_headline() -> None:
    memory = MemorySummary(
        host_peak_bytes=MemoryFigure(predicted=2_000_000_000, measured=1_900_000_000),
        device_peak_bytes=MemoryFigure(predicted=3_000_000_000, measured=2_700_000_000),
        whole_model_bytes=16_000_000_000,
        note="",
    )
    text = check_page(render_html(make_report(memory=memory))).text
    assert "Peak device memory" in text
    assert "17% of the dense weights" in text


def sampled(dense: Continuation, pruned: Continuation, same: str = " the same") -> SampleReport:
    return SampleReport(prompt="A prompt", same=same, same_tokens=2, dense=dense, pruned=pruned)


def test_samples_mark_the_first_different_token() -> None:
    dense = Continuation(token=" one", rest=" and more", tokens=5, ended=False)
    pruned = Continuation(token="\n", rest="", tokens=3, ended=True)
    page = render_html(make_report(samples=[sampled(dense, pruned)]))
    check_page(page)
    assert " the same<mark> one</mark> and more</p>" in page
    assert " the same<mark>↵\n</mark></p>" in page
    assert "3 tokens, ended" in page
    assert "2 equal tokens" in page


def test_samples_without_a_difference_are_said_to_be_the_same() -> None:
    own = Continuation(token="", rest="", tokens=2, ended=False)
    page = render_html(make_report(samples=[sampled(own, own)]))
    assert "the same text" in check_page(page).text
    assert "<mark>" not in page


def test_reports_without_samples_have_no_such_section() -> None:
    assert "Samples" not in check_page(render_html(make_report())).text


def test_what_would_not_be_seen_of_a_sample_is_written_out() -> None:
    own = Continuation(token="\x1b[31m", rest="\u202eevil\u200b\n\tx", tokens=2, ended=False)
    page = render_html(make_report(samples=[sampled(own, own)]))
    assert r"<mark>\x1b[31m</mark>\u202eevil\u200b" + "\n\tx" in page


def test_speed_is_shown_with_its_spread_and_its_circumstances() -> None:
    text = check_page(render_html(make_report(speed=made_speed()))).text
    for each in (
        "20.0 (19.0 to 22.0)",
        "30.0 (29.0 to 32.0)",
        "×1.50",
        "×1.25",
        "transformers 5.1",
        "a device, 2 threads",
        "bfloat16",
        "256 tokens and 32 new ones, 5 times each",
        "123\u00a0MB",
    ):
        assert each in text
    assert "Speed of the result" not in check_page(render_html(make_report())).text


def _poison(value: Any) -> Any:
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: _poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value


def test_hostile_strings_are_escaped_everywhere() -> None:
    dumped = _poison(make_report().model_dump())
    dumped["spec"] = {HOSTILE: {HOSTILE: [HOSTILE]}, "labels": {HOSTILE: HOSTILE}, "name": HOSTILE}
    dumped["spec"]["calibration"] = {"seed": HOSTILE}
    dumped["spec"]["pruning"] = {"allocation": HOSTILE, "layout": {HOSTILE: 1}}
    # Pydantic refuses lone surrogates; model_construct makes them as Python code could.
    clean = Report.model_validate(make_report().model_dump())
    poisoned = clean.model_copy(
        update={
            name: _rebuild(getattr(clean, name), dumped[name]) for name in type(clean).model_fields
        }
    )
    page = render_html(poisoned)
    parsed = check_page(page)
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert parsed.text.count("<script>alert(1)</script>") > 20


def _rebuild(old: Any, new: Any) -> Any:
    if isinstance(old, list):
        return [_rebuild(item, value) for item, value in zip(old, new, strict=True)]
    if hasattr(old, "model_copy"):
        return old.model_copy(
            update={name: _rebuild(getattr(old, name), value) for name, value in new.items()}
        )
    return new


def draw(macro: str, plot: object) -> str:
    return str(getattr(environment().get_template("plots.svg").module, macro)(plot))


def test_plots_take_empty_and_broken_series() -> None:
    broken = layer_chart("gap", {0: 1.0, 1: math.nan, 2: 2.0, 3: None}, "bar", line=True)
    for svg in (
        draw("chart", layer_chart("empty", {}, "bar")),
        draw("chart", layer_chart("empty", {}, "bar", line=True)),
        draw("chart", broken),
        draw("rows", Bars("none", [])),
        draw("rows", Bars("nan", [Bar("x", math.nan, "–", "bar")])),
        draw("stack", Bars("none", [])),
        draw("stack", Bars("zero", [Bar("x", 0.0, "0 s", "s0"), Bar("y", -1.0, "?", "s1")])),
    ):
        assert "nan%" not in svg
        ElementTree.fromstring(svg)
    assert len(list(ElementTree.fromstring(draw("chart", broken)).iter("circle"))) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.count(134_515_008), "134.5 M"),
        (numbers.count(46_080), "46,080"),
        (numbers.count(999_999_999), "1.000 B"),
        (numbers.flops(269_030_016), "269.0 M"),
        (numbers.size(269_030_016), "269 MB"),
        (numbers.size(1_500_000_000), "1.5 GB"),
        (numbers.size(999_600), "1 MB"),
        (numbers.size(912), "912 B"),
        (numbers.number(23.4871), "23.49"),
        (numbers.number(0.0000231), "2.310×10⁻⁵"),
        (numbers.number(0), "0"),
        (numbers.number(-1.5), "−1.500"),
        (numbers.number(math.nan), "–"),
        (numbers.tick(0.25), "0.25"),
        (numbers.tick(1500), "1,500"),
        (numbers.tick(1e-5), "10⁻⁵"),
        (numbers.tick(2.5e-5), "2.5×10⁻⁵"),
        (numbers.percent(0.3), "30.0%"),
        (numbers.change(100, 82.2), "−17.8%"),
        (numbers.change(100, 104.2), "+4.2%"),
        (numbers.change(100, 100.0001), "±0%"),
        (numbers.change(1, 250), "×250"),
        (numbers.change(0, 1), "–"),
        (numbers.duration(0.84), "840 ms"),
        (numbers.duration(0.9999), "1.0 s"),
        (numbers.duration(12.34), "12.3 s"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(245), "4 min 05 s"),
        (numbers.duration(3599.7), "1 h 00 min"),
        (numbers.duration(4321), "1 h 12 min"),
        (numbers.duration(math.inf), "–"),
        (numbers.span(0.2, 0.9), "up to 1 second"),
        (numbers.span(12.0, 40.2), "12 to 41 seconds"),
        (numbers.span(200, 400), "3 to 7 minutes"),
        (numbers.span(30, 100), "up to 2 minutes"),
        (numbers.span(3600, 7200), "1 to 2 hours"),
        (numbers.span(2 * 86400, 2 * 86400), "2 days"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text.replace(numbers.NBSP, " ") == expected


def test_distillation_has_a_card_where_it_was_done() -> None:
    found = DistillationReport(
        status="accepted", steps=20, kl_before=0.25, kl_after=0.125, losses=[0.3] * 20, seconds=61.0
    )
    assert "Distillation" not in render_html(make_report())
    page = render_html(make_report(distillation=found))
    assert "0.2500 → 0.1250 nats per token" in page
    assert "20 of 20" in page
    stopped = found.model_copy(update={"status": "diverged", "kl_after": None, "losses": [0.3]})
    page = render_html(make_report(distillation=stopped))
    assert "diverged" in page
    assert "1 of 20" in page
