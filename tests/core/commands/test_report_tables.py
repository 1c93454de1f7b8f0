"""What the command prints of samples and speed: nothing in it is obeyed by a terminal."""

from __future__ import annotations

import pytest

from strucprune_core.commands.report_tables import show_samples, show_speed
from strucprune_core.report.document import Continuation, SampleReport
from tests.support.reports import made_speed


def test_samples(capsys: pytest.CaptureFixture[str]) -> None:
    dense = Continuation(token=" one", rest="\n[bold]x[/]\x1b[2J", tokens=5, ended=False)
    pruned = Continuation(token="", rest="", tokens=1, ended=True)
    sample = SampleReport(
        prompt="A prompt", same=" both", same_tokens=1, dense=dense, pruned=pruned
    )
    show_samples([sample])
    assert capsys.readouterr().out.splitlines() == [
        "A prompt",
        r"  dense   both one\n[bold]x[/]\x1b[2J",
        "  pruned  both (ended)",
    ]


def test_speed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    show_speed(made_speed())
    out = capsys.readouterr().out
    assert "in transformers 5.1 on a device, bfloat16, threads: 2" in out
    rows = [line.split() for line in out.splitlines()]
    decode = "decode tokens per second 20.0 (19.0 to 22.0) 30.0 (29.0 to 32.0) 1.500"
    assert decode.split() in rows
    assert ["peak", "memory", "while", "running", "123", "MB", "123", "MB", "1.000"] in rows
