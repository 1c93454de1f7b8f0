"""Progress of files that are read or transferred: one bar for all of them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from strucprune_core.commands import figures
from strucprune_core.commands.console import stderr
from strucprune_core.report.visible_text import visible


class ByteDisplay:
    """A bar in a terminal; elsewhere (a log file, CI) a line for each file that is done.

    Args:
        bar: Where it is shown.
        verb: What happens to the files: "uploading".
        total_bytes: Of all files together.
    """

    def __init__(self, bar: Progress, verb: str, total_bytes: int) -> None:
        self._bar, self._verb = bar, verb
        self._task = bar.add_task(verb, total=total_bytes)
        self._done: dict[str, int] = {}

    def __call__(self, name: str, done_bytes: int, file_bytes: int) -> None:
        """Note that so many bytes of a file are done."""
        finished = done_bytes == file_bytes and self._done.get(name) != file_bytes
        self._done[name] = done_bytes
        shown = visible(name, keeping="")
        if stderr.is_terminal:
            done = sum(self._done.values())
            self._bar.update(self._task, completed=done, description=f"{self._verb} {shown}")
        elif finished:
            stderr.print(
                f"{self._verb} {shown}: {figures.size(file_bytes)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


@contextmanager
def byte_display(verb: str, total_bytes: int) -> Iterator[ByteDisplay]:
    """A display of what happens to files; it disappears once it is done."""
    with Progress(
        TextColumn("{task.description:<40}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    ) as bar:
        yield ByteDisplay(bar, verb, total_bytes)
