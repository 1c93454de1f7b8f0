"""Reports as tables for people. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from strucprune_core.commands import figures
from strucprune_core.commands.console import show_warnings
from strucprune_core.commands.tables import print_facts, print_heading, print_table
from strucprune_core.report.document import (
    PhaseTime,
    PredictedSpeed,
    Report,
    SampleReport,
    SpeedReport,
    Spread,
    TaskScores,
    TasksSummary,
    predicted_in_all,
)
from strucprune_core.report.sizes import SizesReport
from strucprune_core.report.visible_text import visible


def show_sizes(report: SizesReport, output: str) -> None:
    """Print what several sizes came to: a line for each."""
    before = report.before
    dense = figures.number(report.perplexity_before)
    rows = [["dense", figures.count(before.parameters), figures.size(before.bytes), dense, "", ""]]
    for each in report.sizes:
        best = "best of its size" if each.best_of_its_size else ""
        rows.append(
            [
                f"{figures.percent(each.sparsity.reached)} removed",
                figures.count(each.after.parameters),
                figures.size(each.after.bytes),
                figures.number(each.perplexity),
                figures.number(each.perplexity_ratio),
                "not published" if each.rejected else best,
            ]
        )
    numbers = ["parameters", "checkpoint", "perplexity", "ratio"]
    print_table(["", *numbers, " "], rows, right=numbers)
    folders = ", ".join(each.folder for each in report.sizes if each.folder is not None)
    print_facts({"time": _time(report.phases), "written to": f"{output}: {folders}"})
    show_warnings(report.warnings)


def show_report(report: Report, output: str) -> None:
    """Print what a job came to: sizes, quality and time."""
    print_facts(_result(report))
    if report.tasks is not None:
        _show_both_tasks(report.tasks)
    if report.speed is not None:
        show_speed(report.speed)
    if report.predicted_speed is not None:
        print_facts({"predicted speed": predicted_line(report.predicted_speed, report.speed)})
    show_samples(report.samples)
    facts = {
        f"export {each.name}": f"{figures.size(each.bytes)} in {output}/{each.folder}"
        + ("" if each.perplexity is None else f", perplexity {figures.number(each.perplexity)}")
        for each in report.exports
    }
    peak = report.memory.host_peak_bytes.measured
    memory = {} if peak is None else {"peak host memory": figures.size(peak)}
    print_facts({**facts, "time": _time(report.phases), **memory, "written to": output})
    show_warnings(report.warnings)


def _result(report: Report) -> dict[str, str]:
    """What the model was and has become."""
    before, after = report.before, report.after
    facts = {
        "parameters": figures.counts(before.parameters, after.parameters),
        "checkpoint": figures.sizes(before.bytes, after.bytes),
        "FLOPs per token": figures.from_to(
            figures.flops(before.flops_per_token),
            figures.flops(after.flops_per_token),
            figures.change(before.flops_per_token, after.flops_per_token),
        ),
    }
    cached, left = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
    if cached is not None and left is not None:
        facts["KV cache per token"] = figures.sizes(cached, left)
    if report.perplexity is not None:
        was, now = report.perplexity.before, report.perplexity.after
        facts["perplexity"] = figures.from_to(
            figures.number(was), figures.number(now), f"x {figures.number(report.perplexity.ratio)}"
        )
    reached, asked = map(figures.percent, (report.sparsity.reached, report.sparsity.requested))
    facts["sparsity"] = reached if reached == asked else f"{reached}, {asked} asked for"
    if report.search is not None:
        limit = figures.number(report.search.max_perplexity_ratio)
        facts["found"] = f"in {len(report.search.tries)} tries, for perplexity x {limit} at most"
    return facts


def _show_both_tasks(tasks: TasksSummary) -> None:
    rows = [
        [dense.task, was.name, f"{was.value:.4f}", f"{now.value:.4f}"]
        for dense, pruned in zip(tasks.dense, tasks.pruned, strict=True)
        for was, now in zip(dense.metrics, pruned.metrics, strict=True)
    ]
    print_table(["task", "metric", "dense", "pruned"], rows, right=["dense", "pruned"])


def _time(phases: Sequence[PhaseTime]) -> str:
    predicted = predicted_in_all(phases)
    beside = "" if predicted is None else f", {figures.duration(predicted)} predicted"
    return figures.duration(sum(phase.seconds for phase in phases)) + beside


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
    first = (dense.first_token_seconds.median, pruned.first_token_seconds.median)
    rows = [
        [
            "prefill tokens per second",
            _spread(dense.prefill_tokens_per_second),
            _spread(pruned.prefill_tokens_per_second),
            f"{speed.prefill_gain:.3f}",
        ],
        [
            "decode tokens per second",
            _spread(dense.decode_tokens_per_second),
            _spread(pruned.decode_tokens_per_second),
            f"{speed.decode_gain:.3f}",
        ],
        ["seconds to the first token", *(f"{each:.3f}" for each in first), ""],
        [
            "peak memory while running",
            figures.size(dense.peak_bytes),
            figures.size(pruned.peak_bytes),
            f"{pruned.peak_bytes / dense.peak_bytes:.3f}" if dense.peak_bytes else "",
        ],
    ]
    print_heading(visible(where, keeping=""))
    print_table(["", "dense", "pruned", "pruned / dense"], rows)


def predicted_line(speed: PredictedSpeed, measured: SpeedReport | None = None) -> str:
    """How fast the result is by the table of a device, and what was measured, in one sentence."""
    found = ""
    if measured is not None:
        gain = measured.decode_gain if speed.of == "decode" else measured.prefill_gain
        found = f"; measured here: {gain:.3f} times"
    return visible(
        f"{speed.of} {speed.predicted:.3f} times as fast ({speed.asked:g} asked for), "
        f"{1e3 * speed.dense_seconds:.4g} ms -> {1e3 * speed.pruned_seconds:.4g} ms, by table "
        f"{speed.table} of {speed.device}, {speed.dtype}, threads: {speed.threads}{found}",
        keeping="",
    )


def _spread(found: Spread) -> str:
    return f"{found.median:.1f} ({found.least:.1f} to {found.most:.1f})"


def _one_line(text: str) -> str:
    return visible(text, keeping="")


def show_tasks(scores: Sequence[TaskScores]) -> None:
    """Print what a model made of tasks: a line for each metric."""
    rows = [
        [
            each.task,
            metric.name,
            f"{metric.value:.4f}",
            "" if metric.standard_error is None else f"{metric.standard_error:.4f}",
            f"{each.chance:.2f}" if metric.name.startswith("acc") else "",
            f"{each.documents:,} of {each.available_documents:,}",
        ]
        for each in scores
        for metric in each.metrics
    ]
    numbers = ["value", "standard error", "chance", "documents"]
    print_table(["task", "metric", *numbers], rows, right=numbers)
