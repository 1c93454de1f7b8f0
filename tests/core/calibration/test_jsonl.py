from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.calibration import jsonl as module
from strucprune_core.calibration import text as blocks
from strucprune_core.calibration.jsonl import jsonl_records
from strucprune_core.calibration.records import Record
from strucprune_core.errors import InvalidText
from tests.core.calibration.stored import json_lines, stored


def records(directory: Path, content: str | bytes, field: str = "text") -> list[Record]:
    return list(jsonl_records(stored(directory, content, "d.jsonl"), field))


def test_records_and_their_lines(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a", "n": 1}\r\n\n  \n{"text": null}\n{"text": ["x"]}'
    assert records(tmp_path, content) == [
        Record("line 1", "a"),
        Record("line 4", None),
        Record("line 5", ["x"]),
    ]
    assert records(tmp_path, '{"n": 1}\n', "n") == [Record("line 1", 1)]
    assert records(tmp_path, "") == []


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=20), block_bytes=st.integers(1, 90))
def test_any_texts_come_back_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        found = records(directory, json_lines([{"text": text} for text in texts]))
    assert [record.value for record in found] == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "line 3 of d.jsonl is not a record"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": "a"} {"text": "b"}', "not valid JSON"),
        (b'{"text": "a", "text": "b"}', "is there twice"),
        (b'{"text": NaN}', "NaN"),
        (b'{"text": "\xff"}', "line 3 of d.jsonl is not a record"),
        (b'{"text": ' + b"[" * 100_000, "nested deeper"),
        (b'{"text": ' + b"9" * 10_000 + b"}", "line 3"),
        (b'{"body": "a", "id": 7}', r"no field 'text' \(its fields: 'body', 'id'\)"),
        (b"{}", "its fields: none"),
        (b"PAR1\x15\x04\x15", "line 3"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(InvalidText, match=reason) as caught:
        records(tmp_path, b'{"text": "fine"}\n\n' + line + b"\n")
    assert caught.value.field == "calibration.uri"
    assert "line 3" in caught.value.message
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("ending", ["", "\n", '\n{"text": "more"}\n'])
def test_an_endless_line_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    content = '{"text": "a"}\n' + '{"text": "' + "x" * 50_000 + '"}' + ending
    with pytest.raises(InvalidText, match=r"line 2 of d\.jsonl is longer than 1,000 bytes"):
        records(tmp_path, content)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    text = stored(tmp_path, json_lines([{"text": "x" * 1000}]) * 20_000, "d.jsonl")  # 20 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in jsonl_records(text, "text")) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * blocks.BLOCK_BYTES


def test_blank_lines_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    lines = '{"text": "a"}\n' + " \n" * 400
    assert len(records(tmp_path, lines * 4)) == 4
    with pytest.raises(InvalidText, match=r"line 502 of d\.jsonl ends 1,000 bytes of blank"):
        records(tmp_path, lines + " \n" * 400)
