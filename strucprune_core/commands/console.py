"""What all commands share: how results, progress and failures are shown. No torch.

Human output and progress go to standard error, results to standard output; `--json` makes the
result one JSON document. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from strucprune_core.commands import figures
from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.uri import parse_uri

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

stderr = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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


def write_file(path: Path, text: str, option: str, *, new: bool = False) -> None:
    """Write a result to a file, with the text's own line ends.

    Args:
        path: Of the file.
        text: What it holds.
        option: What named the file.
        new: Whether a file that is there is an error; else it is replaced.

    Raises:
        InvalidSpec: the file cannot be written.
    """
    try:
        with path.open("x" if new else "w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise InvalidSpec(
            f"cannot write {path}: {error.strerror}",
            field=option,
            remedy="Check its folder and its permissions.",
        ) from error


def progress_bar() -> Progress:
    """A bar in a terminal, nothing elsewhere; it disappears once it is done."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


class StepDisplay:
    """A bar in a terminal; elsewhere (a log file, CI) a line for each new step and tenth."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=1.0)
        self._last: tuple[str, int] | None = None

    def show(
        self, step: str, label: str, fraction: float, left_seconds: float | None = None
    ) -> None:
        """Show how far it is.

        Args:
            step: Each new one is a line of a log.
            label: What the line says.
            fraction: Share of the whole that is done, in [0, 1].
            left_seconds: About how long the rest takes, if that is known; a bar shows its own.
        """
        if stderr.is_terminal:
            self._bar.update(self._task, completed=fraction, description=label)
            return
        now = (step, int(fraction * 10))
        if now != self._last:
            self._last = now
            left = "" if left_seconds is None else f", about {figures.duration(left_seconds)} left"
            stderr.print(f"{fraction:4.0%} {label}{left}", highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def show_warnings(warnings: Sequence[str]) -> None:
    """Print warnings, one a line, apart from the results."""
    for warning in warnings:
        stderr.print(f"[bold yellow]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)
