"""Progress where there is no terminal: a line for each step and tenth."""

from __future__ import annotations

import pytest

from strucprune_core.commands.byte_display import byte_display
from strucprune_core.commands.console import StepDisplay, progress_bar, show_warnings


def test_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        display = StepDisplay(bar)
        display.show("queued", "queued", 0.0)
        display.show("solving", "solving 1/30", 0.01)
        display.show("solving", "solving 2/30", 0.05)
        display.show("solving", "solving 3/30", 0.11, 200.0)
    assert capsys.readouterr().err.splitlines() == [
        "  0% queued",
        "  1% solving 1/30",
        " 11% solving 3/30, about 3 min 20 s left",
    ]


def test_files(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_display("uploading", 3_000_005) as display:
        display("a\x1b[2J", 1_000_000, 3_000_000)
        display("a\x1b[2J", 3_000_000, 3_000_000)
        display("b[bold]", 5, 5)
        display("b[bold]", 5, 5)
    assert capsys.readouterr().err.splitlines() == [
        r"uploading a\x1b[2J: 3 MB",
        "uploading b[bold]: 5 B",
    ]


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings(["one [bold]line[/] " + "long " * 40, "another"])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning one [bold]line[/] long")
    assert second == "warning another"
