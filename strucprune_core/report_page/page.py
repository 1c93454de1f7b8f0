"""Draws a report as one HTML page: no script, nothing loaded, plots as inline SVG. No torch.

Every value of the report is escaped on its way into the page, and a content security policy in the
page forbids scripts and loads should one ever slip through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from strucprune_core.report import (
    DistillationReport,
    ExportReport,
    LayerReport,
    MemoryFigure,
    PerplexitySummary,
    Report,
    Verification,
    has_few_tokens,
)
from strucprune_core.report_page.parts import card, details, facts, figure, name_html, pill, table
from strucprune_core.report_page.plots import (
    Bar,
    Series,
    horizontal_bars,
    kept_width_chart,
    layer_bars,
    layer_line,
    stacked_bar,
    wants_log,
)
from strucprune_core.report_page.style import (
    ABSENT,
    CSS,
    change,
    count,
    duration,
    esc,
    flops,
    known_number,
    number,
    percent,
    size,
)

_COLOURS = 8
_MOST_SITES = 500  # In a table: a large model has thousands of experts.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """Draws the report as a self-contained page.

    Args:
        report: The report of a finished job.

    Returns:
        A whole HTML document, to be written as UTF-8.
    """
    title = f"{_model_name(report)} · StrucPrune report"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"{_header(report)}\n<main>\n{_warnings(report.warnings)}\n{_cards(report)}\n"
        f"{_layers(report)}\n{_quality(report)}\n{_resources(report)}\n{_provenance(report)}\n"
        f"{_files(report)}\n</main>\n{_footer(report)}\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    model, pruning = report.model, _section(report.spec, "pruning")
    chips = [
        f"{model.architecture}, {model.layers} layers",
        f"hidden {model.hidden_size:,}",
        f"FFN {model.intermediate_size:,}",
        model.dtype,
        f"allocation {pruning.get('allocation', ABSENT)}",
        f"layout {pruning.get('layout', ABSENT)}",
        report.environment.device,
    ]
    items = "".join(f"<li>{esc(chip)}</li>" for chip in chips)
    return (
        f'<header>\n<p class="kicker">StrucPrune report</p>\n<h1>{esc(_model_name(report))}</h1>\n'
        f'<p class="uri soft">{esc(model.uri)}</p>\n<p class="lead">{_summary(report)}</p>\n'
        f'<ul class="chips">{items}</ul>\n</header>'
    )


def _summary(report: Report) -> str:
    """The result in two sentences."""
    sparsity, before, after = report.sparsity, report.before, report.after
    text = (
        f"{_removed(report)} ({percent(sparsity.requested)} requested). The checkpoint went from "
        f"{size(before.bytes)} to {size(after.bytes)}"
    )
    quality = report.perplexity
    if quality is None:
        return esc(f"{text}; perplexity was not evaluated.")
    return esc(f"{text}, perplexity from {number(quality.before)} to {number(quality.after)}.")


def _removed(report: Report) -> str:
    """What went, in words."""
    gone, before = report.sparsity, report.before
    channels = f"{gone.channels_removed:,} of {before.ffn_channels:,} FFN channels"
    if not gone.kv_heads_removed and not gone.query_heads_removed:
        return f"{percent(gone.reached)} of the FFN channels were removed: {channels}"
    heads = [
        f"{gone.query_heads_removed:,} of {before.query_heads:,} query heads",
        f"{gone.kv_heads_removed:,} of {before.kv_heads:,} key-value heads",
    ]
    parts = [channels, *heads] if gone.channels_removed else heads
    return f"{percent(gone.reached)} of the prunable parameters were removed: {', '.join(parts)}"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{esc(warning)}</li>" for warning in warnings)
    title = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return (
        '<section class="warnings" aria-labelledby="warnings">'
        f'<h2 id="warnings">{title}</h2><ul>{items}</ul></section>'
    )


def _cards(report: Report) -> str:
    before, after = report.before, report.after
    cards = [
        card(
            "Parameters",
            count(after.parameters),
            f"from {count(before.parameters)}",
            _less_is_good(before.parameters, after.parameters),
            f"{count(report.sparsity.parameters_removed)} removed",
        ),
        card(
            "Checkpoint size",
            size(after.bytes),
            f"from {size(before.bytes)}",
            _less_is_good(before.bytes, after.bytes),
            f"in {report.model.dtype}",
        ),
        _perplexity_card(report.perplexity),
        _flops_card(report),
        _time_card(report),
        _memory_card(report),
    ]
    return f'<section class="cards" aria-label="Headline figures">{"".join(cards)}</section>'


def _perplexity_card(quality: PerplexitySummary | None) -> str:
    if quality is None:
        return card("Perplexity", ABSENT, "not evaluated", "", "The job names no evaluation text.")
    rose = quality.after > quality.before
    return card(
        "Perplexity",
        number(quality.after),
        f"from {number(quality.before)}",
        pill(change(quality.before, quality.after), "bad" if rose else "good"),
        f"{quality.tokens:,} tokens, windows of {quality.sequence_length:,}",
    )


def _time_card(report: Report) -> str:
    total = sum(phase.seconds for phase in report.phases)
    longest = max(report.phases, key=lambda phase: phase.seconds, default=None)
    sub = ""
    if longest is not None and total > 0:
        sub = f"{percent(longest.seconds / total, 0)} of it {longest.name}"
    return card("Time", duration(total), f"on {report.environment.device}", "", sub)


def _memory_card(report: Report) -> str:
    device = _shows_device(report)
    memory = report.memory
    peaks = memory.device_peak_bytes if device else memory.host_peak_bytes
    peak = peaks.predicted if peaks.measured is None else peaks.measured
    was = "predicted, not measured"
    difference = ""
    if peaks.measured is not None:
        was = f"{size(peaks.predicted)} predicted"
        difference = pill(change(peaks.predicted, peaks.measured), "")
    share = peak / memory.whole_model_bytes if memory.whole_model_bytes else math.nan
    compare = percent(share, 0) if share < 2 else f"{number(share, 2)}×"
    return card(
        f"Peak {'device' if device else 'host'} memory",
        size(peak),
        was,
        difference,
        f"{compare} of the dense weights' {size(memory.whole_model_bytes)}",
    )


def _layers(report: Report) -> str:
    layers = report.layers
    small = [
        _energy(layers),
        figure(
            "Predicted damage",
            "Energy-scaled OBS damage of the removed channels.",
            layer_bars(
                _series(layers, "predicted_damage", "predicted damage"),
                "amber",
                _extent("Predicted damage", [layer.predicted_damage for layer in layers]),
            ),
        ),
        _reconstruction(layers),
        figure(
            "Time",
            "Capture, curve and solve, in seconds.",
            layer_bars(
                _series(layers, "seconds", "seconds"),
                "blue",
                _extent("Seconds", [layer.seconds for layer in layers]),
            ),
        ),
    ]
    return (
        '<section aria-labelledby="layers"><h2 id="layers">Layer by layer</h2><div class="stack">'
        f'{_kept_width(report)}{_rounds(report)}<div class="grid">{"".join(small)}</div>'
        f"{_few_tokens(layers)}</div>"
        "</section>"
    )


def _few_tokens(layers: Sequence[LayerReport]) -> str:
    """The sites that fewer calibration tokens reached than they have columns."""
    few = [(layer, site) for layer in layers for site in layer.sites if has_few_tokens(site)]
    if not few:
        return ""
    rows = [
        [
            str(layer.index),
            site.name,
            f"{site.calibration_tokens:,}",
            f"{site.columns:,}",
            percent(site.measured_share),
            f"{site.structures_after:,} of {site.structures_before:,}",
            known_number(site.reconstruction_error),
        ]
        for layer, site in few[:_MOST_SITES]
    ]
    head = ["Layer", "Site", "Tokens", "Columns", "Measured", "Kept", "Error"]
    caption = "What their tokens do not determine is assumed: see docs/method.md"
    if len(few) > _MOST_SITES:
        caption += f". The first {_MOST_SITES:,}; report.json has all"
    rest = details("Table of these sites", table(caption, head, rows, numeric_from=2))
    title = f"{len(few):,} sites saw fewer calibration tokens than they have columns"
    return f'<div class="card"><h3>{title}</h3>{rest}</div>'


def _rounds(report: Report) -> str:
    """How often the price was set, if more than once."""
    if len(report.rounds) < 2:
        return ""
    rows = [
        [
            f"{place}{' (used)' if each.used else ''}",
            ABSENT if each.price is None else number(each.price),
            number(each.predicted_damage),
            ABSENT if each.kl is None else number(each.kl),
        ]
        for place, each in enumerate(report.rounds, start=1)
    ]
    head = ["Round", "Price", "Predicted damage", "KL to dense, held out"]
    caption = "Rounds of the price; the one of least divergence is used"
    return f'<div class="card">{table(caption, head, rows, numeric_from=1)}</div>'


def _kept_width(report: Report) -> str:
    layers = report.layers
    kept = 1 - report.sparsity.reached
    dense = max((layer.width_before for layer in layers), default=0)
    tips = [
        f"Layer {layer.index}: {layer.width_after:,} of {layer.width_before:,} channels kept"
        f" ({_share(layer.width_after, layer.width_before)})"
        for layer in layers
    ]
    series = Series(
        [layer.index for layer in layers], [float(layer.width_after) for layer in layers], tips
    )
    plot = kept_width_chart(
        series,
        [layer.width_before for layer in layers],
        (kept * dense, f"Mean over layers: {percent(kept)} kept"),
        _extent("Kept FFN channels", series.values),
    )
    keys = (
        '<p class="keys"><span><i class="bar"></i>kept</span><span><i class="track"></i>removed'
        f"</span><span>dashed: mean, {percent(kept)} kept</span></p>"
    )
    return figure(
        "Kept FFN channels",
        "Width of each layer after pruning, in front of its dense width.",
        plot,
        extra=_layer_table(layers),
        keys=keys,
    )


def _energy(layers: Sequence[LayerReport]) -> str:
    values = [layer.energy for layer in layers]
    return figure(
        "Energy",
        f"Loss per unit of damage in this layer{_log_note(values)}.",
        layer_line(_series(layers, "energy", "energy"), "violet", _extent("Energy", values)),
    )


def _reconstruction(layers: Sequence[LayerReport]) -> str:
    values = [_drawn(layer.reconstruction_error) for layer in layers]
    return figure(
        "Reconstruction error",
        f"Relative squared error of the FFN output, held-out tokens{_log_note(values)}.",
        layer_line(
            _series(layers, "reconstruction_error", "reconstruction error"),
            "rose",
            _extent("Reconstruction error", values),
        ),
    )


def _layer_table(layers: Sequence[LayerReport]) -> str:
    heads = any(layer.query_heads_after < layer.query_heads_before for layer in layers)
    trained = any(layer.recovery is not None for layer in layers)
    rows = [
        [
            str(layer.index),
            f"{layer.width_before:,}",
            f"{layer.width_after:,}",
            _share(layer.width_after, layer.width_before),
            number(layer.energy),
            number(layer.predicted_damage),
            known_number(layer.reconstruction_error),
            number(layer.damping, 3),
            str(layer.damping_retries),
            *([f"{layer.query_heads_after} / {layer.kv_heads_after}"] if heads else []),
            *([_recovery(layer)] if trained else []),
            duration(layer.seconds),
        ]
        for layer in layers
    ]
    head = ["Layer", "Dense", "Kept", "Share", "Energy", "Damage", "Error", "Damping", "Retries"]
    head += ["Heads / KV"] if heads else []
    head += ["Recovery"] if trained else []
    all_layers = table("All figures, one row per layer", [*head, "Time"], rows, numeric_from=1)
    return details("Table of all layers", all_layers)


def _recovery(layer: LayerReport) -> str:
    """Held-out error before and after training, or that it was not taken."""
    found = layer.recovery
    if found is None:
        return ABSENT
    if found.status != "accepted" or found.error_after is None:
        return found.status
    return f"{known_number(found.error_before)} → {number(found.error_after)}"


def _quality(report: Report) -> str:
    return (
        '<section aria-labelledby="quality"><h2 id="quality">Quality and size</h2>'
        '<div class="stack"><div class="grid">'
        f"{_perplexity(report.perplexity)}{_verification(report)}"
        f"{_distillation(report.distillation)}{_exports(report.exports)}</div>"
        f'<div class="card">{_size_table(report)}</div></div></section>'
    )


def _perplexity(quality: PerplexitySummary | None) -> str:
    if quality is None:
        return (
            '<article class="card"><h3>Perplexity</h3><p class="soft">Not evaluated: the job names '
            "no evaluation text.</p></article>"
        )
    bars = [
        Bar("Dense", quality.before, number(quality.before), "grey"),
        Bar("Pruned", quality.after, number(quality.after), "bar"),
    ]
    label = f"Perplexity {number(quality.before)} before and {number(quality.after)} after"
    conditions = facts(
        [
            ("Ratio", number(quality.ratio)),
            ("Tokens predicted", f"{quality.tokens:,}"),
            ("Windows", f"{quality.sequences:,} of {quality.sequence_length:,} tokens"),
            ("Text", quality.text_uri),
            ("Text SHA-256", quality.text_sha256),
        ],
        mono=("Text", "Text SHA-256"),
    )
    return figure(
        "Perplexity",
        "Dense and pruned model on the same windows; lower is better.",
        horizontal_bars(bars, label),
        extra=conditions,
    )


def _verification(report: Report) -> str:
    what = "The written files were loaded again and compared with the pruned weights in memory."
    return _reload_card("Reload check", what, report.verification)


def _exports(exports: Sequence[ExportReport]) -> str:
    """A card for each further form of the result."""
    return "".join(
        _reload_card(
            f"Export {export.name}",
            f"{size(export.bytes)} in the folder {export.folder}. The files were read back: every "
            f"tensor is to the bit what was to be written.",
            export.verification,
        )
        for export in exports
    )


def _reload_card(title: str, what: str, check: Verification) -> str:
    passed = check.max_abs_logit_difference <= check.tolerance
    verdict = pill("matches", "good") if passed else pill("beyond tolerance", "bad")
    findings = facts(
        [
            ("Reloaded with", check.reference),
            ("Tokens compared", f"{check.tokens:,}"),
            ("Largest logit difference", number(check.max_abs_logit_difference, 3)),
            ("Tolerance", number(check.tolerance, 3)),
        ]
    )
    return (
        f'<article class="card"><h3>{esc(title)} {verdict}</h3><p class="sub">{esc(what)}</p>'
        f"{findings}</article>"
    )


def _distillation(found: DistillationReport | None) -> str:
    """How training the whole model went; nothing if it was not asked for."""
    if found is None:
        return ""
    taken = found.status == "accepted"
    after = ABSENT if found.kl_after is None else number(found.kl_after)
    findings = facts(
        [
            ("Steps", f"{len(found.losses):,} of {found.steps:,}"),
            ("Divergence on held-out text", f"{number(found.kl_before)} → {after} nats per token"),
            ("Time", duration(found.seconds)),
        ]
    )
    return (
        f'<article class="card"><h3>Distillation {pill(found.status, "good" if taken else "bad")}'
        f'</h3><p class="sub">The pruned model was trained as a whole towards the dense one.</p>'
        f"{findings}</article>"
    )


def _flops_card(report: Report) -> str:
    """The FFN's operations; the whole model's where attention went as well."""
    before, after = report.before.flops_per_token, report.after.flops_per_token
    whole = f"whole model {flops(before)} → {flops(after)}"
    ffn_before, ffn_after = _ffn_flops(report)
    if report.sparsity.query_heads_removed:
        note = f"KV cache {size(report.after.kv_cache_bytes_per_token)} per token"
        less = _less_is_good(before, after)
        return card("FLOPs per token", flops(after), f"from {flops(before)}", less, note)
    less = _less_is_good(ffn_before, ffn_after)
    return card("FFN FLOPs per token", flops(ffn_after), f"from {flops(ffn_before)}", less, whole)


def _size_table(report: Report) -> str:
    before, after = report.before, report.after
    ffn_before, ffn_after = _ffn_flops(report)
    figures: list[tuple[str, float, float]] = [
        ("Parameters", before.parameters, after.parameters),
        ("Bytes", before.bytes, after.bytes),
        ("FFN channels", before.ffn_channels, after.ffn_channels),
        ("Query heads", before.query_heads, after.query_heads),
        ("Key-value heads", before.kv_heads, after.kv_heads),
        (
            "KV cache, bytes per token",
            before.kv_cache_bytes_per_token,
            after.kv_cache_bytes_per_token,
        ),
        ("FLOPs per token", before.flops_per_token, after.flops_per_token),
        ("of which FFN", ffn_before, ffn_after),
    ]
    rows = [[name, _exact(was), _exact(now), change(was, now)] for name, was, now in figures]
    return table("Exact figures", ["", "Before", "After", "Change"], rows, numeric_from=1)


def _exact(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else ABSENT


def _resources(report: Report) -> str:
    return (
        '<section aria-labelledby="resources"><h2 id="resources">Memory and time</h2>'
        f'<div class="grid">{_memory(report)}{_phases(report)}</div></section>'
    )


def _memory(report: Report) -> str:
    memory = report.memory
    device = memory.device_peak_bytes
    bars = [
        # Nothing planned and nothing seen: there is no device beside the host.
        *(_peak_bars("Device peak", device) if device.predicted or device.measured else ()),
        *_peak_bars("Host peak", memory.host_peak_bytes),
        Bar(
            "Dense weights alone",
            float(memory.whole_model_bytes),
            size(memory.whole_model_bytes),
            "grey",
        ),
    ]
    label = "Memory: " + ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    rows = [
        _memory_row("Device", memory.device_peak_bytes),
        _memory_row("Host", memory.host_peak_bytes),
        ["Dense weights", ABSENT, f"{memory.whole_model_bytes:,}"],
    ]
    exact = table("Peak bytes", ["", "Predicted", "Measured"], rows, numeric_from=1)
    return figure(
        "Peak memory",
        "Planned before the run and seen during it, next to what the dense weights occupy.",
        horizontal_bars(bars, label),
        extra=f'<p class="sub">{esc(memory.note)}</p>{details("Table of peak bytes", exact)}',
    )


def _peak_bars(name: str, peaks: MemoryFigure) -> list[Bar]:
    bars = [
        Bar(f"{name}, predicted", float(peaks.predicted), size(peaks.predicted), "planned"),
    ]
    if peaks.measured is not None:
        measured = float(peaks.measured)
        bars.append(Bar(f"{name}, measured", measured, size(measured), "bar"))
    return bars


def _memory_row(name: str, peaks: MemoryFigure) -> list[str]:
    seen = "not measured" if peaks.measured is None else f"{peaks.measured:,}"
    return [name, f"{peaks.predicted:,}", seen]


def _phases(report: Report) -> str:
    total = sum(phase.seconds for phase in report.phases)
    bars = [
        Bar(phase.name, phase.seconds, duration(phase.seconds), f"s{place % _COLOURS}")
        for place, phase in enumerate(report.phases)
    ]
    label = "Time per phase: " + ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    legend = "".join(
        f'<li><span class="swatch {bar.style}"></span><span class="what">{esc(bar.name)}</span>'
        f'<span>{esc(bar.text)}</span><span class="soft">{_share(bar.value, total)}</span></li>'
        for bar in bars
    )
    rows = [[bar.name, f"{bar.value:,.3f}", _share(bar.value, total)] for bar in bars]
    exact = table("Seconds per phase", ["Phase", "Seconds", "Share"], rows, numeric_from=1)
    return figure(
        "Time per phase",
        f"{duration(total)} in all, over every attempt.",
        stacked_bar(bars, label),
        extra=f'<ul class="legend">{legend}</ul>{details("Table of phases", exact)}',
    )


def _provenance(report: Report) -> str:
    model, environment = report.model, report.environment
    what = facts(
        [
            ("URI", model.uri),
            ("Architecture", model.architecture),
            ("Layers", model.layers),
            ("Hidden size", f"{model.hidden_size:,}"),
            ("Intermediate size", f"{model.intermediate_size:,}"),
            ("Vocabulary", f"{model.vocab_size:,}"),
            ("Data type", model.dtype),
            ("SHA-256", model.digest),
        ],
        mono=("URI", "SHA-256"),
    )
    how = facts(
        [
            ("Seed", _section(report.spec, "calibration").get("seed", ABSENT)),
            ("StrucPrune", environment.strucprune),
            ("Python", environment.python),
            ("PyTorch", environment.torch),
            ("Device", environment.device),
            ("Platform", environment.platform),
            ("Threads", environment.threads),
            ("Created", report.created_at),
        ]
    )
    spec = _flat(report.spec)
    return (
        '<section aria-labelledby="provenance"><h2 id="provenance">How to get this again</h2>'
        f'<div class="stack"><div class="grid"><article class="card"><h3>Model</h3>{what}</article>'
        f'<article class="card"><h3>Seed and versions</h3>{how}</article></div>'
        '<article class="card"><h3>Job specification</h3>'
        f"{facts(spec, mono=[key for key, _ in spec])}</article></div></section>"
    )


def _files(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row" class="name">{name_html(entry.name)}</th>'
        f'<td class="num">{size(entry.bytes)}</td>'
        f'<td class="digest mono">{esc(entry.sha256)}</td></tr>'
        for entry in report.files
    )
    total = size(sum(entry.bytes for entry in report.files))
    return (
        '<section aria-labelledby="files"><h2 id="files">Files</h2><div class="card"><table>'
        f"<caption>{len(report.files):,} files, {total}</caption><thead><tr>"
        '<th scope="col">Name</th><th scope="col" class="num">Size</th>'
        f'<th scope="col">SHA-256</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _footer(report: Report) -> str:
    return (
        f"<footer><p>StrucPrune {esc(report.environment.strucprune)}, "
        f"{esc(report.created_at)}, report schema {esc(report.schema_version)}. "
        "The same figures are in report.json.</p></footer>"
    )


def _less_is_good(before: float, after: float) -> str:
    return pill(change(before, after), "good" if after < before else "")


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else ABSENT


def _series(layers: Sequence[LayerReport], field: str, name: str) -> Series:
    values = [getattr(layer, field) for layer in layers]
    tips = [
        f"Layer {layer.index}: {name} {known_number(value)}"
        for layer, value in zip(layers, values, strict=True)
    ]
    return Series([layer.index for layer in layers], [_drawn(value) for value in values], tips)


def _drawn(value: float | None) -> float:
    """A value for a plot, which leaves out what is not finite."""
    return math.nan if value is None else float(value)


def _extent(what: str, values: Sequence[float]) -> str:
    """What a screen reader says of a plot with one value per layer."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{what} per layer: no values"
    return (
        f"{what} per layer, {len(values)} layers, from {number(min(finite))} to "
        f"{number(max(finite))}"
    )


def _log_note(values: Sequence[float]) -> str:
    return " (logarithmic axis)" if wants_log(values) else ""


def _ffn_flops(report: Report) -> tuple[float, float]:
    """FLOPs per token of the FFN layers before and after.

    Where only FFN channels are removed, the difference over them is what one costs; else unknown.
    """
    before, after = report.before, report.after
    removed = before.ffn_channels - after.ffn_channels
    if removed <= 0 or report.sparsity.query_heads_removed:
        return math.nan, math.nan
    each = (before.flops_per_token - after.flops_per_token) / removed
    return each * before.ffn_channels, each * after.ffn_channels


def _shows_device(report: Report) -> bool:
    """Whether the headline is device memory; else it is host memory, the CPU's only kind."""
    memory = report.memory
    return memory.device_peak_bytes.measured is not None or (
        memory.host_peak_bytes.measured is None and memory.device_peak_bytes.predicted > 0
    )


def _model_name(report: Report) -> str:
    return report.model.uri.rstrip("/").rpartition("/")[2] or report.model.uri


def _section(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = spec.get(name)
    return section if isinstance(section, Mapping) else {}


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings as dotted paths and text."""
    leaves: list[tuple[str, str]] = []
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            leaves += _flat(item, f"{path}.")
        elif isinstance(item, str):
            leaves.append((path, item))
        else:
            leaves.append((path, json.dumps(item, ensure_ascii=False, default=str)))
    return leaves
