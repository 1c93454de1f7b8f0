"""Tables and facts: aligned, never cut, and nothing in them is obeyed by a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strucprune_core.commands.tables import print_facts, print_records, print_table, show

ID = "job_" + "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["id", "done", "name"], [[ID, "7%", "a"], [ID, "100%", "語[bold]"]], right=["done"])
    assert capsys.readouterr().out.splitlines() == [
        f"{'id':<36}  done  name",
        f"{ID}    7%  a",
        f"{ID}  100%  語[bold]",
    ]


def test_an_empty_table_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["id", "state"], [])
    assert capsys.readouterr().out == "id  state\n"


def test_columns_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_records(
        [{"id": "a", "job": "", "n": "7"}, {"id": "b", "job": "", "n": "10"}], right=["n"]
    )
    assert capsys.readouterr().out.splitlines() == ["id   n", "a    7", "b   10"]


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"id": ID, "the model": "s3://b/a\x1b[2Jb " * 3})
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"id         {ID}"
    assert second == "the model  " + r"s3://b/a\x1b[2Jb " * 3


def test_a_result_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    result: dict[str, Any] = {
        "valid": True,
        "file_bytes": 123_456_789,
        "seconds": 200.0,
        "perplexity": 23.491234,
        "parameters": 134_515_008,
        "adapter": None,
    }
    show(result, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "valid       yes",
        "file bytes  123 MB",
        "seconds     3 min 20 s",
        "perplexity  23.491",
        "parameters  134.5 M",
        "adapter     -",
    ]
    show(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == result
