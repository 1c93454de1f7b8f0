"""What all commands share: how results, progress and failures are shown. No torch.

Human output and progress go to standard error, results to standard output; `--json` makes the
result one JSON document. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from strucprune_core.errors import InvalidSpec, Stopped, StrucPruneError
from strucprune_core.report.document import (
    PredictedSpeed,
    SampleReport,
    SpeedReport,
    Spread,
    TaskScores,
)
from strucprune_core.report.visible_text import visible
from strucprune_core.storage.uri import parse_uri

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

stderr = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def failures(as_json: bool) -> Iterator[None]:
    """Show a failure as one readable message (or JSON) and exit with its code."""
    try:
        yield
    except StrucPruneError as error:
        fail(error, as_json)


def fail(error: StrucPruneError, as_json: bool) -> NoReturn:
    """Show a failure and exit with its code."""
    if as_json:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
    stderr.print(f"[bold red]error[/] ({error.code}) ", end="")
    stderr.print(f"{error}{_place(error)}", markup=False, highlight=False)
    usage = isinstance(error, InvalidSpec)
    stopped = isinstance(error, Stopped)
    raise typer.Exit(EXIT_INTERRUPTED if stopped else EXIT_USAGE if usage else EXIT_FAILED)


def local_path(text: str, option: str | None = None) -> Path:
    """The path on this machine that an option names, with `~` expanded.

    Raises:
        InvalidSpec: it names none.
    """
    try:
        location = parse_uri(text)
        if location.scheme == "file":
            return location.path
    except ValueError as error:
        raise InvalidSpec(str(error), field=option) from error
    raise InvalidSpec(f"'{text}' is not on this machine", field=option, remedy="Give a local path.")


def _place(error: StrucPruneError) -> str:
    """The layer at fault and the phase of the job, if there is one."""
    if error.layer is None:
        return ""
    return f" (layer {error.layer}, {error.phase})" if error.phase else f" (layer {error.layer})"


def progress_bar() -> Progress:
    """A bar in a terminal, nothing elsewhere; it disappears once it is done."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: a table for people, or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # Digests are shown whole.
    for key, value in result.items():
        table.add_row(key.replace("_", " "), _shown(value))
    Console().print(table)


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


def show_estimate(result: dict[str, Any], as_json: bool) -> None:
    """Print an estimate, and its warnings."""
    if as_json:
        show(result, as_json)
        return
    apart = ("predicted_speed", "warnings")
    shown = {name: value for name, value in result.items() if name not in apart}
    if result.get("predicted_speed") is not None:
        speed = PredictedSpeed.model_validate(result["predicted_speed"])
        shown["predicted_speed"] = predicted_line(speed)
    show(shown, as_json)
    show_warnings(result.get("warnings", []))


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


def show_warnings(warnings: Sequence[str]) -> None:
    """Print warnings, one a line, apart from the results."""
    for warning in warnings:
        stderr.print("[bold yellow]warning[/] ", end="")
        stderr.print(warning, markup=False, highlight=False)


def _shown(value: object) -> str:
    """A value for people: thousands separated, fractions with four digits."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
