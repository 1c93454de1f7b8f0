"""The top of the page: a sentence about what the job did, and the headline figures. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from strucprune_core.report.document import (
    MemorySummary,
    PerplexitySummary,
    PhaseTime,
    Report,
    predicted_in_all,
    removes_experts_alone,
)
from strucprune_core.report.html.tables import ffn_flops
from strucprune_core.report.numbers import (
    ABSENT,
    change,
    count,
    duration,
    flops,
    number,
    percent,
    size,
)


@dataclass(frozen=True, slots=True)
class Headline:
    """A large figure: its value now and before, a note, and how it changed."""

    title: str
    now: str
    was: str
    note: str
    change: str = ABSENT
    tone: Literal["", "good", "bad"] = ""


def lead(report: Report) -> str:
    """What the job removed, and how that changed size and quality."""
    before, after, quality = report.before, report.after, report.perplexity
    sizes = f"from {size(before.bytes)} to {size(after.bytes)}"
    text = f"{_removed(report)} The checkpoint went {sizes}"
    if quality is None:
        return f"{text}; perplexity was not evaluated."
    return f"{text}, perplexity from {number(quality.before)} to {number(quality.after)}."


def headlines(report: Report) -> list[Headline]:
    """Size and quality of the result, and what the job cost."""
    before, after = report.before, report.after
    removed = f"{count(report.sparsity.parameters_removed)} removed"
    return [
        _smaller("Parameters", before.parameters, after.parameters, count, removed),
        _smaller("Checkpoint size", before.bytes, after.bytes, size, f"in {report.model.dtype}"),
        _perplexity(report.perplexity),
        _flops(report),
        _time(report.phases, report.environment.device),
        _memory(report.memory),
    ]


def _removed(report: Report) -> str:
    gone, before = report.sparsity, report.before
    kinds = {
        "FFN channels": (gone.channels_removed, before.ffn_channels),
        "query heads": (gone.query_heads_removed, before.query_heads),
        "key-value heads": (gone.kv_heads_removed, before.kv_heads),
        "routed experts": (gone.experts_removed, before.experts),
    }
    parts = _blocks(report)
    parts += [f"{part:,} of {whole:,} {kind}" for kind, (part, whole) in kinds.items() if part]
    asked = f"requested: {percent(gone.requested)}"
    if removes_experts_alone(report):
        return f"StrucPrune removed {parts[0]}: {percent(gone.reached)} ({asked})."
    return (
        f"StrucPrune removed {', '.join(parts) or 'nothing'}: {percent(gone.reached)} of "
        f"the prunable parameters ({asked})."
    )


def _blocks(report: Report) -> list[str]:
    """Blocks that went whole, by what they are."""
    names = {
        "attention_blocks": "attention blocks",
        "ffn_blocks": "FFN blocks",
        "layers": "whole layers",
    }
    counts = Counter(each.structure for each in report.blocks)
    return [f"{number} of {report.model.layers} {names[kind]}" for kind, number in counts.items()]


def _smaller(
    title: str, before: float, after: float, text: Callable[[float], str], note: str
) -> Headline:
    """A figure that is better if it is smaller."""
    now, was, difference = text(after), f"from {text(before)}", change(before, after)
    return Headline(title, now, was, note, difference, "good" if after < before else "")


def _perplexity(quality: PerplexitySummary | None) -> Headline:
    if quality is None:
        note = "The job names no evaluation text."
        return Headline("Perplexity", ABSENT, "not evaluated", note)
    return Headline(
        "Perplexity",
        number(quality.after),
        f"from {number(quality.before)}",
        f"{quality.tokens:,} tokens, windows of {quality.sequence_length:,}",
        change(quality.before, quality.after),
        "bad" if quality.after > quality.before else "good",
    )


def _flops(report: Report) -> Headline:
    """The FFN's operations; those of the whole model if attention was pruned too."""
    before, after = report.before.flops_per_token, report.after.flops_per_token
    if report.sparsity.query_heads_removed and report.after.kv_cache_bytes_per_token is not None:
        cache = f"KV cache {size(report.after.kv_cache_bytes_per_token)} per token"
        return _smaller("FLOPs per token", before, after, flops, cache)
    if report.sparsity.experts_removed:
        note = "a token passes as many experts as before"
        return _smaller("FLOPs per token", before, after, flops, note)
    if report.sparsity.blocks_removed:
        return _smaller("FLOPs per token", before, after, flops, "attention scores left out")
    whole = f"whole model {flops(before)} → {flops(after)}"
    return _smaller("FFN FLOPs per token", *ffn_flops(report), flops, whole)


def _time(phases: list[PhaseTime], device: str) -> Headline:
    total = sum(phase.seconds for phase in phases)
    longest = max(phases, key=lambda phase: phase.seconds, default=None)
    note = ""
    if longest is not None and total > 0:
        note = f"{percent(longest.seconds / total, 0)} of it {longest.name}"
    predicted = predicted_in_all(phases)
    was = f"on {device}" if predicted is None else f"{duration(predicted)} predicted, on {device}"
    return Headline("Time", duration(total), was, note)


def _memory(memory: MemorySummary) -> Headline:
    """Peak of the device if there is one, else of the host."""
    device, host, dense = memory.device_peak_bytes, memory.host_peak_bytes, memory.whole_model_bytes
    on_device = device.measured is not None or (host.measured is None and device.predicted > 0)
    peaks = device if on_device else host
    title = f"Peak {'device' if on_device else 'host'} memory"
    if peaks.measured is None:
        note = _compared(peaks.predicted, dense)
        return Headline(title, size(peaks.predicted), "predicted, not measured", note)
    was, difference = f"{size(peaks.predicted)} predicted", change(peaks.predicted, peaks.measured)
    return Headline(title, size(peaks.measured), was, _compared(peaks.measured, dense), difference)


def _compared(peak: float, dense: float) -> str:
    """The peak as a percentage of the dense weights, or as a multiple from twice on."""
    ratio = peak / dense if dense else math.nan
    times = f"{number(ratio, 2)} times" if ratio >= 2 else f"{percent(ratio, 0)} of"
    return f"{times} the dense weights ({size(dense)})"
