from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from strucprune_core.calibration import text as plain
from strucprune_core.calibration.documents import document_tokens, end_of_text, read_records
from strucprune_core.calibration.text import Text, draw_windows
from strucprune_core.calibration.tokenizer_config import (
    TokenizerConfig,
    check_chat_template,
    read_tokenizer_config,
)
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, InvalidText
from strucprune_core.spec import FileFormat
from strucprune_core.storage.local import LocalStore
from tests.core.calibration.stored import END, json_lines, of, stored, words
from tests.support.text import make_text

NO_SETTINGS = TokenizerConfig({}, None)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


def stream(text: Text, tokenizer: Tokenizer, kind: FileFormat = "jsonl", **more: Any) -> list[int]:
    records = read_records(text, kind, "text")
    return [token for ids in document_tokens(text, records, of(tokenizer), **more) for token in ids]


@settings(max_examples=40, deadline=None)
@given(documents=st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=12))
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_documents_give_the_tokens_of_direct_tokenisation(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[str],
    kind: FileFormat,
) -> None:
    directory = tmp_path_factory.mktemp("documents")
    if kind == "jsonl":
        text = stored(directory, json_lines([{"text": text} for text in documents]), "d.jsonl")
    else:
        pq.write_table(pa.table({"text": documents}), directory / "d.parquet")
        text = Text(LocalStore(directory), "d.parquet", "calibration.uri")
    expected = [id_ for document in documents for id_ in [*tokenizer.encode(document).ids, 0]]
    assert stream(text, tokenizer, kind, end=0) == expected


def test_both_formats_give_the_same_windows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = make_text(60).split("\n\n")
    one = stored(tmp_path, json_lines([{"text": text} for text in documents]), "d.jsonl")
    pq.write_table(pa.table({"text": documents}), tmp_path / "d.parquet", row_group_size=7)
    other = Text(one.store, "d.parquet", "calibration.uri")
    kinds: list[tuple[Text, FileFormat]] = [(one, "jsonl"), (other, "parquet")]
    windows = []
    for text, kind in kinds:
        records = read_records(text, kind, "text")
        tokens = document_tokens(text, records, of(tokenizer), end=0)
        windows.append(draw_windows(tokens, 8, 64, 3, text.field))
    assert np.array_equal(windows[0], windows[1])


def test_a_long_document_goes_in_pieces(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = make_text(20)
    text = stored(tmp_path, json_lines([{"text": document}]), "d.jsonl")
    monkeypatch.setattr(plain, "BLOCK_BYTES", 100)
    assert stream(text, tokenizer, end=0) == [*tokenizer.encode(document).ids, 0]


def test_null_and_empty_documents_are_passed_over(tmp_path: Path) -> None:
    lines = json_lines([{"text": value} for value in ("w1 w2", None, "", "w3")])
    assert stream(stored(tmp_path, lines), words(), end=END) == [1, 2, END, 3, END]


def test_a_model_without_an_end_token_gets_none(tmp_path: Path) -> None:
    text = stored(tmp_path, json_lines([{"text": "w1 w2"}, {"text": "w3"}]))
    assert stream(text, words()) == [1, 2, 3]


def test_the_tokenizer_s_own_special_tokens_come_once(tmp_path: Path) -> None:
    both = words()
    ends = [("w498", 498), ("w499", END)]
    both.post_processor = TemplateProcessing(single="w498 $A w499", special_tokens=ends)
    text = stored(tmp_path, json_lines([{"text": "w1 w2"}, {"text": "w3"}]))
    assert stream(text, both, end=END) == [498, 1, 2, END, 498, 3, END]


def test_no_more_is_read_than_calibration_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "CALIBRATION_TEXT_BYTES", 50)
    text = stored(tmp_path, json_lines([{"text": "w1 w2 w3 w4"}] * 100))
    assert len(stream(text, words())) == 4 * 5


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "line 2 of d.jsonl holds a number, not text"),
        ([{"role": "user"}], "holds a list, not text"),
        ({"a": 1}, "holds an object"),
        (True, "holds a boolean"),
        ("\ud800", "line 2 of d.jsonl holds text that is not Unicode"),
    ],
)
def test_what_is_no_text(tmp_path: Path, value: object, reason: str) -> None:
    text = stored(tmp_path, json_lines([{"text": "w1"}, {"text": value}]), "d.jsonl")
    with pytest.raises(InvalidText, match=reason) as caught:
        stream(text, words())
    assert caught.value.field == "calibration.uri"
    assert caught.value.remedy


def test_the_digest_is_of_the_documents(tmp_path: Path) -> None:
    sha = hashlib.sha256()
    stream(stored(tmp_path, json_lines([{"text": "é"}, {"text": "b"}])), words(), seen=sha.update)
    assert sha.hexdigest() == hashlib.sha256("é\0b\0".encode()).hexdigest()


def test_too_few_documents(tmp_path: Path) -> None:
    text = stored(tmp_path, json_lines([{"text": "w1 w2"}]))
    tokens = document_tokens(text, read_records(text, "jsonl", "text"), of(words()), end=END)
    with pytest.raises(InvalidText, match="3 tokens; 2 sequences of 8 need 16"):
        draw_windows(tokens, 2, 8, 0, text.field)


@pytest.mark.parametrize(
    ("settings_", "config", "expected"),
    [
        (TokenizerConfig({"eos_token": "w7"}, None), {"eos_token_id": 3}, 7),
        (TokenizerConfig({"eos_token": "unknown"}, None), {"eos_token_id": 3}, 3),
        (NO_SETTINGS, {"eos_token_id": [5, 6]}, 5),
        (NO_SETTINGS, {"eos_token_id": []}, None),
        (NO_SETTINGS, {"eos_token_id": 10**9}, None),
        (NO_SETTINGS, {"eos_token_id": "x"}, None),
        (NO_SETTINGS, {}, None),
    ],
)
def test_the_end_token(
    settings_: TokenizerConfig, config: dict[str, Any], expected: int | None
) -> None:
    assert end_of_text(of(words()), settings_, config) == expected


def model_with(directory: Path, config: object, template: str | bytes | None = None) -> LocalStore:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        data = template.encode() if isinstance(template, str) else template
        (directory / "chat_template.jinja").write_bytes(data)
    return LocalStore(directory)


FILES = ("tokenizer_config.json", "chat_template.jinja")


@pytest.mark.parametrize(
    ("config", "file", "expected"),
    [
        ({"chat_template": "A"}, None, "A"),
        ({"chat_template": "A"}, "B", "B"),
        ({}, "B", "B"),
        ({"chat_template": [{"name": "tool_use", "template": "T"}]}, None, None),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "T"},
                    {"name": "default", "template": "D"},
                ]
            },
            None,
            "D",
        ),
        ({"chat_template": [3, {"name": "default"}]}, None, None),
        ({"chat_template": 3}, None, None),
    ],
)
def test_which_template_counts(
    tmp_path: Path, config: object, file: str | None, expected: str | None
) -> None:
    store = model_with(tmp_path, config, file)
    found = read_tokenizer_config(store, FILES if file else FILES[:1])
    assert found.chat_template == expected


def test_special_tokens_in_both_spellings(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": 3}
    found = read_tokenizer_config(model_with(tmp_path, config), FILES[:1])
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert read_tokenizer_config(LocalStore(tmp_path), ()) == NO_SETTINGS


@pytest.mark.parametrize("template", [b"\xff\xfe", b"x" * (2 << 20)])
def test_a_template_file_that_will_not_do(tmp_path: Path, template: bytes) -> None:
    with pytest.raises(InvalidCheckpoint, match="chat_template"):
        read_tokenizer_config(model_with(tmp_path, {}, template), FILES)


def test_hostile_tokenizer_configs(tmp_path: Path) -> None:
    hostile: list[object] = [[], {"chat_template": "x" * (2 << 20)}]
    for config in hostile:
        with pytest.raises(InvalidCheckpoint):
            read_tokenizer_config(model_with(tmp_path, config), FILES[:1])


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(InvalidSpec, match="no chat template") as caught:
        check_chat_template(NO_SETTINGS)
    assert caught.value.field == "calibration.chat_template"
    assert caught.value.remedy


def test_rows_of_nothing_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strucprune_core.calibration.documents.MAX_EMPTY_RECORDS", 100)
    empty = [{"text": None}, {"text": ""}] * 50
    lines = json_lines([*empty, {"text": "w1"}])
    assert stream(stored(tmp_path, lines), words()) == [1]
    with pytest.raises(InvalidText, match=r"line 102 .* one of more than 100 that hold no text"):
        stream(stored(tmp_path, lines + json_lines(empty)), words())
