"""A session with a tokenizer in its own process: what the library itself gives, and its ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from strucprune_core.calibration import tokenizer_session
from strucprune_core.calibration.process_limits import TextLimits
from strucprune_core.calibration.tokenizer_session import TokenizerSession
from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint
from strucprune_core.errors import InvalidCheckpoint, InvalidText
from strucprune_core.storage.local import LocalStore

TEXTS = ["The model", "", " naïve 東京 \n\n x", "<|endoftext|>The", "a" * 5000]
# Needs time that grows exponentially with the text.
BACKTRACKS = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def index_of(model: Path) -> CheckpointIndex:
    return open_checkpoint(LocalStore(model))


def rows(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def test_it_encodes_and_decodes_as_the_library(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_session, "_MESSAGE_CHARACTERS", 12)  # Several messages.
    library = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    with TokenizerSession(index_of(tiny_model), rows(tiny_model)) as session:
        ids = session.encode(TEXTS)
        assert ids == [library.encode(text).ids for text in TEXTS]
        assert session.decode(ids) == [library.decode(each) for each in ids]
        assert session.decode(ids, special_tokens=True) == TEXTS
        assert not session.encode([])
        assert not session.decode([])
        assert (session.tokens.start, session.tokens.end) == (0, 0)


def test_texts_that_are_no_unicode_are_refused(tiny_model: Path) -> None:
    with (
        TokenizerSession(index_of(tiny_model), rows(tiny_model)) as session,
        pytest.raises(InvalidText, match="not valid Unicode"),
    ):
        session.encode(["\ud800"])


def test_a_hostile_tokenizer_ends_its_process_only(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = BACKTRACKS
    path.write_text(json.dumps(tokenizer))
    limits = TextLimits(seconds=3.0, seconds_per_mib=1.0)
    monkeypatch.setattr(tokenizer_session, "LIMITS", limits)
    with (
        TokenizerSession(index_of(model), rows(model)) as session,
        pytest.raises(InvalidCheckpoint, match=r"a prompt was tokenised|fails on the text"),
    ):
        session.encode([("a" * 40 + "b") * 3])


def test_a_broken_tokenizer_is_named(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json cannot be read"):
        TokenizerSession(index_of(model), rows(model))


def test_ids_are_within_the_model(tiny_model: Path) -> None:
    with (
        TokenizerSession(index_of(tiny_model), 100) as session,
        pytest.raises(InvalidCheckpoint, match="vocabulary of 100"),
    ):
        session.encode(["The model writes"])
