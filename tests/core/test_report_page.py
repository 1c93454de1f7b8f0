"""The HTML report: well-formed, escaped, self-contained, complete at every shape of report."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from strucprune_core.report import (
    DistillationReport,
    Environment,
    FileEntry,
    LayerReport,
    MemoryFigure,
    MemorySummary,
    ModelSummary,
    PerplexitySummary,
    PhaseTime,
    Report,
    RoundReport,
    SizeSummary,
    SparsitySummary,
    Verification,
)
from strucprune_core.report_page import render_html, style
from strucprune_core.report_page.plots import (
    Bar,
    Series,
    horizontal_bars,
    layer_bars,
    layer_line,
    stacked_bar,
    wants_log,
)

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


def make_layers(count: int, width: int = 1536) -> list[LayerReport]:
    return [
        LayerReport(
            index=index,
            width_before=width,
            width_after=int(width * (0.55 + 0.4 * abs(math.sin(0.37 * index + 0.8)))),
            query_heads_before=9,
            query_heads_after=9,
            kv_heads_before=3,
            kv_heads_after=3,
            sites=[],
            energy=0.02 * math.exp(4.2 * abs(math.cos(0.21 * index))),
            predicted_damage=0.0011 * (1.3 + math.sin(1.1 * index)),
            reconstruction_error=0.012 + 0.05 * index / count + 0.01 * math.sin(2.3 * index),
            damping=0.3,
            damping_retries=0,
            seconds=1.6 + 0.4 * math.sin(index),
        )
        for index in range(count)
    ]


def make_report(layers: int = 30, **changes: Any) -> Report:
    hidden, width = 576, 1536
    rows = make_layers(layers, width)
    channels = layers * width
    kept = sum(row.width_after for row in rows)
    removed = channels - kept
    other = 49152 * hidden + layers * 884_736
    before, after = other + 3 * hidden * channels, other + 3 * hidden * kept
    values: dict[str, Any] = {
        "created_at": "2025-06-01T09:30:00Z",
        "model": ModelSummary(
            uri="s3://models/examples/tiny-llama-135m",
            architecture="llama",
            layers=layers,
            hidden_size=hidden,
            intermediate_size=width,
            vocab_size=49152,
            dtype="bfloat16",
            digest="5f" * 32,
        ),
        "spec": {
            "model": {"uri": "s3://models/examples/tiny-llama-135m"},
            "output": {"uri_prefix": "s3://models/pruned/tiny-llama-135m-s20"},
            "pruning": {
                "structures": ["ffn_channels"],
                "sparsity": 0.2,
                "allocation": "threshold",
                "solver": "obs",
                "layout": "per_layer",
                "damping": None,
                "min_keep_fraction": 0.1,
                "multiple_of": 1,
            },
            "calibration": {
                "uri": "s3://texts/calibration.txt",
                "samples": 32,
                "sequence_length": 512,
                "seed": 1729,
            },
            "runtime": {"device": "auto", "micro_batch_tokens": 4096, "priority": "normal"},
            "labels": {"team": "edge"},
        },
        "environment": Environment(
            strucprune="0.1.0",
            python="3.11.9",
            torch="2.6.0",
            device="cpu",
            platform="Linux-6.1-x86_64",
            threads=2,
        ),
        "before": SizeSummary(
            parameters=before,
            bytes=2 * before,
            ffn_channels=channels,
            query_heads=9 * layers,
            kv_heads=3 * layers,
            kv_cache_bytes_per_token=768 * layers,
            flops_per_token=2 * before,
        ),
        "after": SizeSummary(
            parameters=after,
            bytes=2 * after,
            ffn_channels=kept,
            query_heads=9 * layers,
            kv_heads=3 * layers,
            kv_cache_bytes_per_token=768 * layers,
            flops_per_token=2 * after,
        ),
        "sparsity": SparsitySummary(
            requested=0.2,
            reached=removed / channels,
            channels_removed=removed,
            kv_heads_removed=0,
            query_heads_removed=0,
            parameters_removed=before - after,
        ),
        "layers": rows,
        "perplexity": PerplexitySummary(
            before=23.4871,
            after=27.9132,
            ratio=27.9132 / 23.4871,
            sequences=24,
            sequence_length=1024,
            tokens=24552,
            text_uri="s3://texts/evaluation.txt",
            text_sha256="a7" * 32,
        ),
        "memory": MemorySummary(
            host_peak_bytes=MemoryFigure(predicted=812_000_000, measured=774_500_000),
            device_peak_bytes=MemoryFigure(predicted=161_000_000, measured=None),
            whole_model_bytes=2 * before,
            note="Host: highest resident set of the process. Device: not measured on CPU.",
        ),
        "phases": [
            PhaseTime(name=name, seconds=seconds)
            for name, seconds in [
                ("inspecting", 0.42),
                ("calibrating", 41.8),
                ("allocating", 12.3),
                ("solving", 63.9),
                ("evaluating", 88.1),
                ("uploading", 3.7),
                ("committing", 0.2),
            ]
        ],
        "verification": Verification(
            reference="transformers 5.0",
            tokens=512,
            max_abs_logit_difference=0.00012,
            tolerance=0.01,
        ),
        "files": [
            FileEntry(name="config.json", bytes=912, sha256="01" * 32),
            FileEntry(name="model.safetensors", bytes=2 * after, sha256="ab" * 32),
            FileEntry(name="tokenizer.json", bytes=2_104_556, sha256="9c" * 32),
        ],
        "warnings": ["Illustration: the figures in this report are made up, not measured."],
    }
    return Report(**{**values, **changes})


class Page(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def check_page(page: str) -> Page:
    """Everything that holds for any report."""
    parsed = Page(page)
    page.encode()
    assert "script" not in parsed.tags
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href", "srcset", "xlink:href", "action", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    css = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    plots = svgs(page)
    assert len(plots) >= 7
    for plot in plots:
        assert plot.get("role") == "img"
        assert plot.get("aria-label")
        for element in plot.iter():
            for value in element.attrib.values():
                assert "nan" not in value.lower().split("%")[0].split()
                assert not re.fullmatch(r"-?(inf|nan)%?", value)
            for size in ("width", "height"):
                assert not element.get(size, "0").startswith("-")
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return parsed


@pytest.mark.parametrize("layers", [1, 2, 30, 126])
def test_renders_every_depth(layers: int) -> None:
    page = render_html(make_report(layers))
    check_page(page)
    bars = [node for node in svgs(page)[0].iter("rect") if node.get("class") == "bar"]
    assert len(bars) == layers
    for plot in svgs(page)[:5]:
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
        "1 min 28 s".replace(" ", style.NBSP),
        *report.warnings,
        *[entry.sha256 for entry in report.files],
        *[phase.name for phase in report.phases],
        *[style.known_number(layer.reconstruction_error) for layer in report.layers],
        *[f"{layer.width_after:,}" for layer in report.layers],
    ]
    assert [value for value in expected if value not in text] == []


def test_an_unknown_error_is_said_and_not_drawn() -> None:
    report = make_report(5)
    layers = list(report.layers)
    layers[2] = layers[2].model_copy(update={"reconstruction_error": None})
    page = render_html(report.model_copy(update={"layers": layers}))
    assert "Layer 2: reconstruction error unknown" in check_page(page).text
    (plot,) = [svg for svg in svgs(page) if "Reconstruction error" in (svg.get("aria-label") or "")]
    assert len(list(plot.iter("circle"))) == 4


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


HOSTILE = (
    "</style></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>"
    '" onload="x" \' & \x00\x1b\ud800\u202etxt'
)


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
    dumped["spec"] = {HOSTILE: {HOSTILE: [HOSTILE]}, "labels": {HOSTILE: HOSTILE}}
    dumped["spec"]["calibration"] = {"seed": HOSTILE}
    dumped["spec"]["pruning"] = {"allocation": HOSTILE, "layout": {HOSTILE: 1}}
    # Pydantic refuses lone surrogates; model_construct stands for whoever builds one in Python.
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


def test_plots_take_empty_and_broken_series() -> None:
    empty = Series([], [], [])
    broken = Series([0, 1, 2], [1.0, math.nan, 2.0], ["a", "b", "c"])
    for svg in (
        layer_bars(empty, "bar", "empty"),
        layer_line(empty, "bar", "empty"),
        layer_line(broken, "bar", "gap"),
        horizontal_bars([], "none"),
        horizontal_bars([Bar("x", math.nan, "–", "bar")], "nan"),
        stacked_bar([], "none"),
        stacked_bar([Bar("x", 0.0, "0 s", "s0"), Bar("y", -1.0, "?", "s1")], "zero"),
    ):
        assert "nan%" not in svg
        ElementTree.fromstring(svg)
    assert len(list(ElementTree.fromstring(layer_line(broken, "bar", "gap")).iter("circle"))) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (style.count(134_515_008), "134.5 M"),
        (style.count(46_080), "46,080"),
        (style.count(999_999_999), "1.000 B"),
        (style.flops(269_030_016), "269.0 M"),
        (style.size(269_030_016), "269 MB"),
        (style.size(1_500_000_000), "1.5 GB"),
        (style.size(999_600), "1 MB"),
        (style.size(912), "912 B"),
        (style.number(23.4871), "23.49"),
        (style.number(0.0000231), "2.310×10⁻⁵"),
        (style.number(0), "0"),
        (style.number(-1.5), "−1.500"),
        (style.number(math.nan), "–"),
        (style.tick(0.25), "0.25"),
        (style.tick(1500), "1,500"),
        (style.tick(1e-5), "10⁻⁵"),
        (style.tick(2.5e-5), "2.5×10⁻⁵"),
        (style.percent(0.3), "30.0%"),
        (style.change(100, 82.2), "−17.8%"),
        (style.change(100, 104.2), "+4.2%"),
        (style.change(100, 100.0001), "±0%"),
        (style.change(1, 250), "×250"),
        (style.change(0, 1), "–"),
        (style.duration(0.84), "840 ms"),
        (style.duration(0.9999), "1.0 s"),
        (style.duration(12.34), "12.3 s"),
        (style.duration(59.97), "1 min 00 s"),
        (style.duration(245), "4 min 05 s"),
        (style.duration(3599.7), "1 h 00 min"),
        (style.duration(4321), "1 h 12 min"),
        (style.duration(math.inf), "–"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text.replace(style.NBSP, " ") == expected


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
