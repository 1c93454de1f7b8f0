"""The tables of the page, with exact figures. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from strucprune_core.report.document import (
    BlockReport,
    ExpertsReport,
    FileEntry,
    LayerReport,
    MemorySummary,
    PhaseTime,
    PhaseTraffic,
    Report,
    RoundReport,
    SpeedReport,
    Spread,
    TaskMetric,
    TasksSummary,
    has_few_tokens,
    layers_with_experts,
    removes_experts_alone,
)
from strucprune_core.report.numbers import (
    ABSENT,
    change,
    duration,
    exact,
    number,
    percent,
    share,
    size,
)

_MOST_SITES = 500  # In a table: a large model has thousands of experts.


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a name and numbers.

    Attributes:
        title: What it lists.
        head: Names of the columns.
        rows: As many cells each as there are columns.
        mono: Names of columns that hold text, set in a fixed pitch.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    mono: Collection[str] = ()


def size_table(report: Report) -> Table:
    """Every size of the model before and after."""
    names = {
        "parameters": "Parameters",
        "bytes": "Bytes",
        "ffn_channels": "FFN channels",
        "query_heads": "Query heads",
        "kv_heads": "Key-value heads",
        "experts": "Routed experts",
        "kv_cache_bytes_per_token": "KV cache, bytes per token",
        "flops_per_token": "FLOPs per token",
    }
    sizes = {
        name: (getattr(report.before, field), getattr(report.after, field))
        for field, name in names.items()
        if getattr(report.before, field) is not None
    }
    if removes_experts_alone(report):
        del sizes["FFN channels"]
    elif not report.sparsity.experts_removed:
        del sizes["Routed experts"]
        sizes["of which FFN"] = ffn_flops(report)
    rows = [[name, exact(was), exact(now), change(was, now)] for name, (was, now) in sizes.items()]
    return Table("Exact sizes", ["", "Before", "After", "Change"], rows)


def search_table(report: Report) -> Table:
    """Every sparsity that was tried."""
    tries = () if report.search is None else report.search.tries
    rows = [
        [
            percent(each.sparsity),
            number(each.predicted_ratio),
            "" if each.perplexity_ratio is None else number(each.perplexity_ratio, 4),
            "taken" if each.sparsity == report.sparsity.requested else "",
        ]
        for each in tries
    ]
    head = ["Sparsity", "Perplexity ratio, predicted", "Measured", ""]
    return Table("How the sparsity was found", head, rows)


def speed_table(speed: SpeedReport | None) -> Table:
    """How fast both models are, and how many times as fast the pruned one is."""
    head = ["", "Dense", "Pruned", "Pruned / dense"]
    if speed is None:
        return Table("Speed", head, [])
    dense, pruned = speed.dense, speed.pruned
    rows = [
        [
            "Prefill, tokens per second",
            _spread(dense.prefill_tokens_per_second),
            _spread(pruned.prefill_tokens_per_second),
            f"×{number(speed.prefill_gain, 3)}",
        ],
        [
            "Decode, tokens per second",
            _spread(dense.decode_tokens_per_second),
            _spread(pruned.decode_tokens_per_second),
            f"×{number(speed.decode_gain, 3)}",
        ],
        [
            "First token",
            duration(dense.first_token_seconds.median),
            duration(pruned.first_token_seconds.median),
            "",
        ],
        [
            "Peak memory",
            size(dense.peak_bytes),
            size(pruned.peak_bytes),
            change(dense.peak_bytes, pruned.peak_bytes),
        ],
    ]
    return Table("Speed", head, rows)


def _spread(found: Spread) -> str:
    least, most = number(found.least, 3), number(found.most, 3)
    return f"{number(found.median, 3)} ({least} to {most})"


def ffn_flops(report: Report) -> tuple[float, float]:
    """FLOPs per token of the FFN layers before and after.

    If only FFN channels are removed, and no block goes whole, the difference divided by their
    number is the cost of one; else the result is NaN.
    """
    before, after = report.before, report.after
    removed, each = before.ffn_channels - after.ffn_channels, math.nan
    gone = report.sparsity
    if removed > 0 and not gone.query_heads_removed and not gone.blocks_removed:
        each = (before.flops_per_token - after.flops_per_token) / removed
    return each * before.ffn_channels, each * after.ffn_channels


def block_table(blocks: Sequence[BlockReport]) -> Table:
    """The blocks that went whole, in the order of their removal."""
    names = {"attention_blocks": "attention", "ffn_blocks": "FFN", "layers": "whole layer"}
    rows = [
        [
            str(step),
            str(each.layer),
            names.get(each.structure, each.structure),
            exact(each.parameters),
            number(each.kl),
        ]
        for step, each in enumerate(blocks, 1)
    ]
    head = ["Step", "Layer", "Block", "Parameters", "KL divergence so far"]
    return Table("Blocks that went whole", head, rows)


def layer_table(layers: Sequence[LayerReport]) -> Table:
    """All figures of all layers, without columns for steps that the job left out."""
    columns: dict[str, Callable[[LayerReport], str]] = {
        "Layer": lambda layer: str(layer.index),
        "Dense": lambda layer: exact(layer.width_before),
        "Kept": lambda layer: exact(layer.width_after),
        "Share": lambda layer: share(layer.width_after, layer.width_before),
        "Energy": lambda layer: number(layer.energy),
        "Damage": lambda layer: number(layer.predicted_damage),
        "Error": lambda layer: number(layer.reconstruction_error),
        "Damping": lambda layer: number(layer.damping, 3),
        "Retries": lambda layer: str(layer.damping_retries),
    }
    if any(layer.query_heads_after < layer.query_heads_before for layer in layers):
        columns["Heads / KV"] = lambda layer: f"{layer.query_heads_after} / {layer.kv_heads_after}"
    if any(layer.recovery is not None for layer in layers):
        columns["Recovery"] = _recovery
    if any(layer.refit is not None for layer in layers):
        columns["Solved again"] = _refit
    columns["Time"] = lambda layer: duration(layer.seconds)
    rows = [[text(layer) for text in columns.values()] for layer in layers]
    return Table("Table of all layers", [*columns], rows)


def expert_layer_table(layers: Sequence[LayerReport]) -> Table:
    """What became of the experts of each layer."""
    rows = [
        [
            str(layer.index),
            exact(experts.before),
            exact(experts.after),
            exact(min(experts.calibration_tokens)),
            exact(max(experts.calibration_tokens)),
            _repair(experts),
            " ".join(map(str, experts.removed)),
            duration(layer.seconds),
        ]
        for layer, experts in layers_with_experts(layers)
    ]
    head = [
        "Layer",
        "Dense",
        "Kept",
        "Least tokens",
        "Most tokens",
        "Repair",
        "Removed experts",
        "Time",
    ]
    return Table("Table of all layers", head, rows, mono=["Removed experts"])


def _repair(experts: ExpertsReport) -> str:
    """What a layer's repair did to its held-out error."""
    repair = experts.repair
    if repair is None or repair.error_before is None:
        return ABSENT if repair is None else repair.status
    errors = f"{number(repair.error_before)} → {number(repair.error_after, none=ABSENT)}"
    return f"{errors}, {repair.status}"


def expert_table(layers: Sequence[LayerReport]) -> Table:
    """The experts, in the order of their scores."""
    all_experts = [
        (experts.scores[expert], layer.index, expert, experts)
        for layer, experts in layers_with_experts(layers)
        for expert in range(experts.before)
    ]
    rows = [
        [
            f"{layer}.{expert}",
            exact(experts.calibration_tokens[expert]),
            number(score),
            "removed" if expert in experts.removed else "kept",
        ]
        for score, layer, expert, experts in sorted(all_experts, key=lambda each: each[:3])
    ]
    title = f"Table of {len(rows):,} experts, lowest score first"
    return Table(title, ["Layer and expert", "Tokens", "Score", ""], rows[:_MOST_SITES])


def _refit(layer: LayerReport) -> str:
    refit = layer.refit
    if refit is None:
        return ""
    verdict = "" if refit.taken else " (not used)"
    return f"{number(refit.error_before)} → {number(refit.error_after)}{verdict}"


def _recovery(layer: LayerReport) -> str:
    """Held-out error before and after training, or the status if it was not accepted."""
    trained = layer.recovery
    if trained is None:
        return ABSENT
    if trained.status != "accepted" or trained.error_after is None:
        return trained.status
    return f"{number(trained.error_before)} → {number(trained.error_after)}"


def few_tokens_table(layers: Sequence[LayerReport]) -> Table:
    """The sites that fewer calibration tokens reached than they have columns."""
    few = [(layer, site) for layer in layers for site in layer.sites if has_few_tokens(site)]
    rows = [
        [
            str(layer.index),
            site.name,
            exact(site.calibration_tokens),
            exact(site.columns),
            percent(site.measured_share),
            f"{site.structures_after:,} of {site.structures_before:,}",
            number(site.reconstruction_error),
        ]
        for layer, site in few[:_MOST_SITES]
    ]
    title = f"{len(few):,} sites saw fewer calibration tokens than they have columns"
    head = ["Layer", "Site", "Tokens", "Columns", "Measured", "Kept", "Error"]
    return Table(title, head, rows, mono=["Site"])


def round_table(rounds: Sequence[RoundReport]) -> Table:
    """The rounds of allocation."""
    rows = [
        [
            f"{place}{' (used)' if each.used else ''}",
            number(each.price, none=ABSENT),
            number(each.predicted_damage),
            number(each.kl, none=ABSENT),
        ]
        for place, each in enumerate(rounds, start=1)
    ]
    head = ["Round", "Price", "Predicted damage", "KL to dense, held out"]
    return Table("Rounds of the price", head, rows)


def task_table(tasks: TasksSummary | None) -> Table:
    """Every metric of every task, of both models."""
    rows = []
    for dense, pruned in [] if tasks is None else zip(tasks.dense, tasks.pruned, strict=True):
        for was, now in zip(dense.metrics, pruned.metrics, strict=True):
            counts = f"{dense.documents:,} of {dense.available_documents:,}"
            rows.append([dense.task, was.name, metric_text(was), metric_text(now), counts])
    return Table("Tasks", ["Task", "Metric", "Dense", "Pruned", "Documents"], rows, mono=["Metric"])


def metric_text(metric: TaskMetric) -> str:
    """A value with its standard error, if it has one."""
    error = metric.standard_error
    return number(metric.value) if error is None else f"{number(metric.value)} ± {number(error, 2)}"


def memory_table(memory: MemorySummary) -> Table:
    """Peaks in bytes."""
    peaks = {"Device": memory.device_peak_bytes, "Host": memory.host_peak_bytes}
    rows = [
        [
            name,
            exact(peak.predicted),
            "not measured" if peak.measured is None else exact(peak.measured),
        ]
        for name, peak in peaks.items()
    ]
    rows.append(["Dense weights", ABSENT, exact(memory.whole_model_bytes)])
    return Table("Table of peak bytes", ["", "Predicted", "Measured"], rows)


def traffic_table(traffic: Sequence[PhaseTraffic]) -> Table:
    """What each phase read and copied: counted, and planned."""
    rows = [
        [
            phase.name,
            *(
                f"{size(counted)} ({size(planned)})"
                for counted, planned in (
                    (phase.counted.read_bytes, phase.planned.read_bytes),
                    (phase.counted.to_device_bytes, phase.planned.to_device_bytes),
                    (phase.counted.to_host_bytes, phase.planned.to_host_bytes),
                )
            ),
        ]
        for phase in traffic
    ]
    head = ["Phase", "Read of the model", "Host to device", "Device to host"]
    return Table("Table of traffic: counted (planned)", head, rows)


def phase_table(phases: Sequence[PhaseTime]) -> Table:
    """Seconds of each phase, as predicted and as taken."""
    total = sum(phase.seconds for phase in phases)
    rows = [
        [
            phase.name,
            f"{phase.seconds:,.3f}",
            share(phase.seconds, total),
            ABSENT if phase.predicted_seconds is None else f"{phase.predicted_seconds:,.1f}",
        ]
        for phase in phases
    ]
    return Table("Table of phases", ["Phase", "Seconds", "Share", "Predicted"], rows)


def file_table(files: Sequence[FileEntry]) -> Table:
    """Every published file with its digest."""
    title = f"{len(files):,} files, {size(sum(entry.bytes for entry in files))}"
    rows = [[entry.name, size(entry.bytes), entry.sha256] for entry in files]
    return Table(title, ["Name", "Size", "SHA-256"], rows, mono=["SHA-256"])
