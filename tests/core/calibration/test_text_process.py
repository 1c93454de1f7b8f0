"""Hostile tokenizers, templates and texts end in a process of their own, for good and by name."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer

from strucprune_core.calibration import text_process
from strucprune_core.calibration.process_limits import TextLimits
from strucprune_core.calibration.text import Text, first_windows
from strucprune_core.calibration.text_process import text_tokens, tokenizer_facts
from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint
from strucprune_core.errors import (
    InvalidCheckpoint,
    InvalidText,
    ProcessKilled,
    Stopped,
)
from strucprune_core.storage.local import LocalStore

TALK = [{"role": "user", "content": "hello"}]
# 3 GB of text from a few bytes, and a program that does not end.
BIG = (
    "{% set ns = namespace(s='x' * 1000) %}"
    "{% for i in range(22) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
)
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}done"
)


@pytest.fixture(scope="module", autouse=True)
def forked_text_process() -> None:
    """It is started here as jobs start it."""


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of time, shortened."""
    monkeypatch.setattr(text_process, "LIMITS", TextLimits(seconds=3.0, seconds_per_mib=1.0))


def index_of(model: Path) -> CheckpointIndex:
    return open_checkpoint(LocalStore(model))


def rows(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def conversations(root: Path, *values: object) -> Text:
    lines = "".join(json.dumps({"messages": value}) + "\n" for value in values)
    (root / "talk.jsonl").write_text(lines)
    return Text(LocalStore(root), "talk.jsonl", "calibration.uri")


def read_talk(model: Path, text: Text) -> list[np.ndarray[Any, Any]]:
    return list(
        text_tokens(
            index_of(model),
            text,
            vocab_size=rows(model),
            file_format="jsonl",
            document_field="messages",
            chat=True,
        )
    )


def test_the_tokens_are_those_of_the_tokenizer(model: Path, text_file: Path) -> None:
    text = Text(LocalStore(text_file.parent), text_file.name, "evaluation.uri")
    windows = first_windows(
        text_tokens(index_of(model), text, vocab_size=rows(model)), 4, 100, text.field
    )
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert windows.ravel().tolist() == tokenizer.encode(text_file.read_text()).ids[:400]


def test_facts_of_the_tokenizer(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    start, size = tokenizer_facts(index_of(model), rows(model))
    assert size == tokenizer.get_vocab_size()
    assert start is not None
    assert 0 <= start < size


def test_a_template_that_takes_three_gigabytes(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% if messages[0]['content'] == 'grow' %}" + BIG + "{% endif %}fine"
    )
    text = conversations(tmp_path, TALK, [{"role": "user", "content": "grow"}])
    with pytest.raises(InvalidText) as caught:
        read_talk(model, text)
    assert not caught.value.retryable
    assert caught.value.field == "calibration.uri"
    assert "memory" in caught.value.message
    assert "line 2 of talk.jsonl" in caught.value.message


@pytest.mark.usefixtures("soon")
def test_a_template_that_does_not_end(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(ENDLESS)
    with pytest.raises(InvalidText, match=r"processor time .* line 1 of talk.jsonl"):
        read_talk(model, conversations(tmp_path, TALK))


def with_pattern(model: Path, pattern: str) -> None:
    """Let the tokenizer split texts by a pattern."""
    path = model / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(stored))


@pytest.mark.usefixtures("soon")
def test_a_pattern_that_takes_for_ever(model: Path, tmp_path: Path) -> None:
    # Of the fourth power of a run's length, and below what the library allows for each match.
    with_pattern(model, r"a*a*a*\p{Lu}")
    (tmp_path / "text.txt").write_text(("a" * 200 + " ") * 1000)
    text = Text(LocalStore(tmp_path), "text.txt", "evaluation.uri")
    with pytest.raises(InvalidText, match=r"processor time .* the text of text\.txt") as caught:
        list(text_tokens(index_of(model), text, vocab_size=rows(model)))
    assert not caught.value.retryable


def test_a_tokenizer_that_takes_the_memory(model: Path, tmp_path: Path) -> None:
    # Each letter becomes a megabyte.
    path = model / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}
    path.write_text(json.dumps(stored))
    (tmp_path / "text.txt").write_text("a" * 5000)
    text = Text(LocalStore(tmp_path), "text.txt", "evaluation.uri")
    with pytest.raises(InvalidText, match=r"the text of text\.txt") as caught:
        list(text_tokens(index_of(model), text, vocab_size=rows(model)))
    assert not caught.value.retryable


def test_a_tokenizer_nested_deeper_than_the_stack(model: Path, tmp_path: Path) -> None:
    path = model / "tokenizer.json"
    stored = json.loads(path.read_text())
    deep = '{"type":"Sequence","normalizers":[' * 20000 + "]}" * 20000
    path.write_text(json.dumps({**stored, "normalizer": None}).replace("null", deep, 1))
    (tmp_path / "text.txt").write_text("a b c")
    text = Text(LocalStore(tmp_path), "text.txt", "evaluation.uri")
    with pytest.raises(InvalidCheckpoint) as caught:
        list(text_tokens(index_of(model), text, vocab_size=rows(model)))
    assert caught.value.field == "model.uri"


def test_a_parquet_file_that_unpacks_to_more_than_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_process, "LIMITS", TextLimits(bytes=64 << 20))
    path = tmp_path / "bomb.parquet"
    # One page with one value of 128 MiB, in a file of some kilobytes.
    column = pa.array(["a" * (1 << 27)], pa.large_string())
    parquet.write_table(
        pa.table({"text": column}),
        path,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    assert path.stat().st_size < 1 << 16
    text = Text(LocalStore(tmp_path), path.name, "calibration.uri")
    with pytest.raises(InvalidText, match=r"bomb\.parquet") as caught:
        list(
            text_tokens(
                index_of(model),
                text,
                vocab_size=rows(model),
                file_format="parquet",
                document_field="text",
            )
        )
    assert not caught.value.retryable


@pytest.mark.parametrize("value", ["语言模型的剪枝方法" * 120_000, "word and word " * 90_000])
def test_honest_texts_have_room(
    model: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No more than the text needs, so that the factors are tested and not the base.
    monkeypatch.setattr(text_process, "LIMITS", TextLimits(bytes=64 << 20, seconds=5.0))
    (tmp_path / "text.txt").write_text(value)
    text = Text(LocalStore(tmp_path), "text.txt", "evaluation.uri")
    ids = np.concatenate(list(text_tokens(index_of(model), text, vocab_size=rows(model))))
    assert len(ids) > len(value) // 10


def test_it_is_not_given_the_credentials(
    model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-service")
    text = Text(LocalStore(text_file.parent), text_file.name, "evaluation.uri")
    tokens = text_tokens(index_of(model), text, vocab_size=rows(model))
    next(tokens)
    environments = [
        (folder / "environ").read_bytes()
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and is_reader(folder)
    ]
    assert environments
    assert not any(b"secret-of-the-service" in environment for environment in environments)


def is_reader(folder: Path) -> bool:
    try:
        return b"text_process_main" in (folder / "cmdline").read_bytes()
    except OSError:
        return False


def readers_of_this_process() -> list[int]:
    import os

    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    ids = [int(number) for path in children for number in path.read_text().split()]
    return [number for number in ids if is_reader(Path(f"/proc/{number}"))]


@pytest.mark.usefixtures("soon")
def test_a_stop_is_heard_while_it_works(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(ENDLESS)
    text = conversations(tmp_path, TALK)
    asked = threading.Event()
    threading.Timer(1.0, asked.set).start()

    def stop() -> None:
        if asked.is_set():
            raise Stopped("enough")

    began = time.monotonic()
    with pytest.raises(Stopped):
        list(
            text_tokens(
                index_of(model),
                text,
                vocab_size=rows(model),
                file_format="jsonl",
                document_field="messages",
                chat=True,
                wait=stop,
            )
        )
    assert time.monotonic() - began < 2.9
    assert readers_of_this_process() == []


def test_a_reader_that_stops_early_leaves_no_process(model: Path, text_file: Path) -> None:
    text = Text(LocalStore(text_file.parent), text_file.name, "evaluation.uri")
    tokens: Iterator[Any] = text_tokens(index_of(model), text, vocab_size=rows(model))
    next(tokens)
    assert len(readers_of_this_process()) == 1
    del tokens
    assert readers_of_this_process() == []


def test_a_process_that_somebody_kills_is_tried_again(model: Path, text_file: Path) -> None:
    import os
    import signal

    text = Text(LocalStore(text_file.parent), text_file.name, "evaluation.uri")

    def kill() -> None:
        for number in readers_of_this_process():
            os.kill(number, signal.SIGKILL)

    watched = Text(text.store, text.key, text.field, tick=kill)
    with pytest.raises(ProcessKilled) as caught:
        list(text_tokens(index_of(model), watched, vocab_size=rows(model)))
    assert caught.value.retryable


def test_it_runs_where_the_caller_has_other_modules(
    model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the user's in the current directory is not taken for one of ours."""
    (tmp_path / "tokenizers.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    text = Text(LocalStore(text_file.parent), text_file.name, "evaluation.uri")
    assert next(text_tokens(index_of(model), text, vocab_size=rows(model))).size
