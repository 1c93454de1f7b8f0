"""Reports as tables for people. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from strucprune_core.commands.console import show_warnings
from strucprune_core.report.document import Report, SampleReport, SpeedReport, Spread, TaskScores
from strucprune_core.report.html.numbers import ABSENT, count, number, percent, size
from strucprune_core.report.sizes import SizesReport
from strucprune_core.report.visible_text import visible


def show_sizes(report: SizesReport, output: str) -> None:
    """Print what several sizes came to: a line for each."""
    before = report.before
    table = Table("", "parameters", "bytes", "perplexity", "ratio", "", box=None)
    dense = number(report.perplexity_before, none=ABSENT)
    table.add_row("dense", count(before.parameters), size(before.bytes), dense, "", "")
    for each in report.sizes:
        best = "best of its size" if each.best_of_its_size else ""
        table.add_row(
            f"{percent(each.sparsity.reached)} removed",
            count(each.after.parameters),
            size(each.after.bytes),
            number(each.perplexity, none=ABSENT),
            number(each.perplexity_ratio, none=ABSENT),
            "not published" if each.rejected else best,
        )
    console = Console()
    console.print(table)
    seconds = sum(phase.seconds for phase in report.phases)
    folders = ", ".join(each.folder for each in report.sizes if each.folder is not None)
    console.print(f"{seconds:.0f} s, written to {output}: {folders}", highlight=False)
    show_warnings(report.warnings)


def show_report(report: Report, output: str) -> None:
    """Print what a job came to: sizes, quality and time."""
    table = Table("", "before", "after", "after / before", box=None)
    before, after = report.before, report.after
    rows: list[tuple[str, float, float, str]] = [
        ("parameters", before.parameters, after.parameters, ",.0f"),
        ("bytes", before.bytes, after.bytes, ",.0f"),
        ("FLOPs per token", before.flops_per_token, after.flops_per_token, ",.0f"),
    ]
    cached, left = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if cached is not None and left is not None:
        rows.append(("KV cache bytes per token", cached, left, ",.0f"))
    if report.perplexity is not None:
        rows.append(("perplexity", report.perplexity.before, report.perplexity.after, ".3f"))
    if report.tasks is not None:
        for before_task, after_task in zip(report.tasks.dense, report.tasks.pruned, strict=True):
            for was, now in zip(before_task.metrics, after_task.metrics, strict=True):
                rows.append((f"{before_task.task} {was.name}", was.value, now.value, ".4f"))
    for name, dense, pruned, style in rows:
        table.add_row(
            name,
            format(dense, style),
            format(pruned, style),
            f"{pruned / dense:.3f}" if dense else "",
        )
    console = Console()
    console.print(table)
    gone = report.sparsity
    console.print(f"sparsity {gone.reached:.4f}, {gone.requested:.4f} asked for", highlight=False)
    peak = report.memory.host_peak_bytes.measured or 0
    seconds = sum(phase.seconds for phase in report.phases)
    for export in report.exports:
        measured = "" if export.perplexity is None else f", perplexity {export.perplexity:.3f}"
        console.print(
            f"{export.name}: {export.bytes:,} bytes in {output}/{export.folder}{measured}"
        )
    if report.speed is not None:
        show_speed(report.speed)
    show_samples(report.samples)
    console.print(f"{seconds:.0f} s, peak host memory {peak / 1e6:.0f} MB, written to {output}")
    show_warnings(report.warnings)


def show_samples(samples: Sequence[SampleReport]) -> None:
    """Print how both models continue prompts: one line each, the first different token marked."""
    console = Console()
    for sample in samples:
        console.print(Text(_one_line(sample.prompt), style="bold"))
        for name, own in (("dense", sample.dense), ("pruned", sample.pruned)):
            line = Text.assemble(
                (f"  {name:<7}", "dim"),
                _one_line(sample.same),
                (_one_line(own.token), "reverse"),
                _one_line(own.rest),
                (" (ended)" if own.ended else "", "dim"),
            )
            console.print(line)


def show_speed(speed: SpeedReport) -> None:
    """Print how fast both models are: medians, and how many times as fast the pruned one is."""
    where = f"in {speed.runtime} on {speed.device}, {speed.dtype}, threads: {speed.threads}"
    dense, pruned = speed.dense, speed.pruned
    table = Table("", "dense", "pruned", "pruned / dense", box=None)
    for name, was, now, gain in (
        (
            "prefill tokens per second",
            dense.prefill_tokens_per_second,
            pruned.prefill_tokens_per_second,
            speed.prefill_gain,
        ),
        (
            "decode tokens per second",
            dense.decode_tokens_per_second,
            pruned.decode_tokens_per_second,
            speed.decode_gain,
        ),
    ):
        table.add_row(name, _spread(was), _spread(now), f"{gain:.3f}")
    first = (dense.first_token_seconds.median, pruned.first_token_seconds.median)
    table.add_row("seconds to the first token", *(f"{each:.3f}" for each in first))
    peaks = (f"{dense.peak_bytes:,}", f"{pruned.peak_bytes:,}")
    ratio = f"{pruned.peak_bytes / dense.peak_bytes:.3f}" if dense.peak_bytes else ""
    table.add_row("peak bytes while running", *peaks, ratio)
    console = Console()
    console.print(Text(visible(where, keeping="")))
    console.print(table)


def _spread(found: Spread) -> str:
    return f"{found.median:.1f} ({found.least:.1f} to {found.most:.1f})"


def _one_line(text: str) -> str:
    return visible(text, keeping="")


def show_tasks(scores: Sequence[TaskScores]) -> None:
    """Print what a model made of tasks: a line for each metric."""
    table = Table("task", "metric", "value", "standard error", "chance", "documents", box=None)
    for each in scores:
        for metric in each.metrics:
            error = metric.standard_error
            table.add_row(
                each.task,
                metric.name,
                f"{metric.value:.4f}",
                "" if error is None else f"{error:.4f}",
                f"{each.chance:.2f}" if metric.name.startswith("acc") else "",
                f"{each.documents:,} of {each.available_documents:,}",
            )
    Console().print(table)
