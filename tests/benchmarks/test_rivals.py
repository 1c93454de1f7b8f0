"""The comparison's command: a run from text to table, its resume, its plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import rivals
from benchmarks.rival_runs import method_named
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

SVG = "{http://www.w3.org/2000/svg}"


def row(method: str, sparsity: float, perplexity: float) -> rivals.Row:
    title = method_named(method).title
    return rivals.Row(
        method, title, "ffn", sparsity, sparsity, perplexity, perplexity / 20, 12.3, 20.0, 5 * 10**8
    )


def test_a_run_resumes_from_its_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2, hidden=16, intermediate=12)
    text = tmp_path / "text.txt"
    text.write_text(make_text(), encoding="utf-8")
    arguments = (
        f"rivals --model {model} --calibration {text} --evaluation {text} --samples 4 "
        f"--sequence-length 32 --sequences 2 --evaluation-length 64 --threads 1 --levels 0.25 "
        f"--methods flap --work {tmp_path / 'work'} --json {tmp_path / 'out.json'} "
        f"--plot {tmp_path / 'out.svg'}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert rivals.main() == 0
    first = json.loads((tmp_path / "out.json").read_text())
    (found,) = first["rows"]
    assert found["ratio"] == pytest.approx(found["perplexity"] / first["dense"]["perplexity"])
    assert found["reached"] == 0.25
    assert found["cpu_seconds"] > 0
    assert "FLAP" in capsys.readouterr().out
    (tmp_path / "out.json").unlink()
    assert rivals.main() == 0
    assert json.loads((tmp_path / "out.json").read_text()) == first
    assert "flap" not in capsys.readouterr().err  # Nothing ran again.
    ElementTree.parse(tmp_path / "out.svg")


def test_the_table_shows_collapsed_models_too() -> None:
    rows = [row("magnitude", 0.3, 1_400_000.0), row("ours", 0.3, 28.5)]
    lines = rivals.table(rows, {"perplexity": 20.0}).splitlines()
    assert "30% of FFN channels" in "\n".join(lines)
    assert lines[-2].startswith("| magnitude-sp | 1,400,000 | 70,000 |")
    assert "| 28.50 | 1.425 | 12 s | 20 s | 500 MB |" in lines[-1]
