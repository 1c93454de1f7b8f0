"""Every way in which the tokenizers library fails is a typed error that no retry cures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from strucprune_core.calibration.documents import end_of_text
from strucprune_core.calibration.text import evaluation_windows
from strucprune_core.calibration.tokenizer import TextTokenizer, chat_tokenizer, load_tokenizer
from strucprune_core.calibration.tokenizer_config import TokenizerConfig
from strucprune_core.errors import InvalidCheckpoint, InvalidText, StrucPruneError
from strucprune_core.evaluation.standalone import evaluate_model
from tests.core.calibration.stored import stored
from tests.core.jobs.tiny_job import run, tiny_spec

ROWS = 512


def definition(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of the words w0 to w9."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return {**json.loads(tokenizer.to_str()), **parts}


def word_level(**parts: Any) -> dict[str, Any]:
    return definition(model={"type": "WordLevel", "vocab": {"w0": 0}, "unk_token": "?", **parts})


def bpe(merges: list[list[str]]) -> dict[str, Any]:
    return {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": merges}


def split_by(pattern: str) -> dict[str, Any]:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return dict(json.loads(split.__getstate__()))


def added(token_id: int) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token_id, "content": "<x>", **dict.fromkeys(flags, False)}


def template(*, ids: list[int], names: tuple[str, ...] = ("X",)) -> dict[str, Any]:
    piece = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {name: {"id": name, "ids": ids, "tokens": [name]} for name in names}
    return {
        "type": "TemplateProcessing",
        "single": piece,
        "pair": [*piece, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }


CATASTROPHE = "a" * 40 + "bc"
PROSE_CATASTROPHE = r"(?:[a-z]+ ?)+[0-9]{9}"
UNREADABLE: list[bytes | dict[str, Any]] = [
    b"",
    b"{}",
    b"\xff",
    b'{"model": 3}',
    b"[]",
    json.dumps(definition()).encode()[:-20],
    b"[" * 2**20,
    b'{"model":' * 2**20,
    definition(model={"type": "Unknown"}),
    definition(model=bpe([["a", "c"]])),
    definition(model=bpe([["a", "b"]])),
    definition(model={"type": "BPE", "vocab": {}, "merges": []}),
    definition(model={"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}),
    definition(added_tokens=[added(2**40)]),
    definition(added_tokens=[added(-1)]),
    definition(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    definition(decoder={"type": "Unknown"}),
    definition(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
]
FAILING: list[tuple[dict[str, Any], type[StrucPruneError], str]] = [
    (word_level(), InvalidText, r"cannot encode .*Missing \[UNK\]"),
    (
        definition(
            model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?"}
            | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        ),
        InvalidText,
        "cannot encode",
    ),
    (
        definition(model={"type": "Unigram", "unk_id": None, "vocab": [["x", -1.0]]}),
        InvalidText,
        "cannot encode",
    ),
    (definition(model=bpe([]) | {"unk_token": "?"}), InvalidText, "cannot encode"),
    (definition(pre_tokenizer=split_by(r"(a+)+$")), InvalidCheckpoint, "retry-limit"),
    (
        definition(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        InvalidCheckpoint,
        "retry-limit",
    ),
    (
        definition(pre_tokenizer={"type": "FixedLength", "length": 0}),
        InvalidCheckpoint,
        "fails on the text",
    ),
    (definition(post_processor=template(ids=[1], names=())), InvalidCheckpoint, "fails on"),
    (definition(post_processor=template(ids=[2**32 - 1])), InvalidCheckpoint, "4294967295"),
    (definition(post_processor=template(ids=[ROWS])), InvalidCheckpoint, "vocabulary of 512"),
    (word_level(vocab={"w": ROWS}, unk_token="w"), InvalidCheckpoint, "gives token 512"),
    (word_level(vocab={"w": 2**32 - 1}, unk_token="w"), InvalidCheckpoint, "vocabulary of 512"),
]


def as_file(content: bytes | dict[str, Any]) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.mark.parametrize("content", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes | dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"^model\.uri: tokenizer\.json cannot") as caught:
        load_tokenizer(as_file(content), ROWS)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("content", "kind", "reason"), FAILING, ids=range(len(FAILING)))
def test_a_tokenizer_that_fails_on_a_text(
    tmp_path: Path, content: dict[str, Any], kind: type[StrucPruneError], reason: str
) -> None:
    tokenizer = load_tokenizer(as_file(content), ROWS)
    with pytest.raises(kind, match=reason) as caught:
        evaluation_windows(stored(tmp_path, CATASTROPHE), tokenizer, 1, 2)
    assert caught.value.field == ("calibration.uri" if kind is InvalidText else "model.uri")
    assert caught.value.remedy
    assert not caught.value.retryable


def test_interrupts_pass() -> None:
    class Interrupted:
        def encode(self, text: str, add_special_tokens: bool) -> object:
            raise KeyboardInterrupt

    tokenizer: Any = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        TextTokenizer(tokenizer, ROWS).encode("a", special_tokens=False)


def test_special_tokens_that_cannot_be() -> None:
    tokenizer = load_tokenizer(as_file(word_level(vocab={"<x>": ROWS}, unk_token="<x>")), ROWS)
    with pytest.raises(InvalidCheckpoint, match="gives token 512"):
        end_of_text(tokenizer, TokenizerConfig({"eos_token": "<x>"}, None), {})
    half = "\ud800"
    with pytest.raises(InvalidCheckpoint, match=r"special token of tokenizer_config\.json"):
        end_of_text(tokenizer, TokenizerConfig({"eos_token": half}, None), {})
    with pytest.raises(InvalidCheckpoint, match=r"special token of tokenizer_config\.json"):
        chat_tokenizer({"eos_token": half})


def test_what_is_for_training_is_switched_off() -> None:
    """Truncation, padding and dropout change what a text is encoded as."""
    saved = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    saved.enable_truncation(8)
    saved.enable_padding(length=2048)
    tokenizer = load_tokenizer(saved.to_str().encode(), ROWS)
    assert tokenizer.encode("ab" * 500, special_tokens=True) == [2] * 500


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """The tiny model with another tokenizer.json."""

    def make(content: dict[str, Any]) -> Path:
        directory = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        (directory / "tokenizer.json").write_bytes(as_file(content))
        return directory

    return make


@pytest.mark.parametrize(
    ("content", "code", "field"),
    [
        (word_level(), "invalid_text", "calibration.uri"),
        (definition(pre_tokenizer=split_by(PROSE_CATASTROPHE)), "invalid_checkpoint", "model.uri"),
        (definition(model=bpe([["a", "b"]])), "invalid_checkpoint", "model.uri"),
        (word_level(vocab={"w": 2**31}, unk_token="w"), "invalid_checkpoint", "model.uri"),
    ],
)
def test_a_job_ends_for_good(
    tmp_path: Path,
    text_file: Path,
    model: Callable[[dict[str, Any]], Path],
    content: dict[str, Any],
    code: str,
    field: str,
) -> None:
    directory = model(content)
    with pytest.raises(StrucPruneError) as caught:
        run(tiny_spec(directory, text_file, tmp_path / "out", evaluation=None), tmp_path)
    error = caught.value
    assert (error.code, error.field, error.retryable) == (code, field, False)
    with pytest.raises(StrucPruneError) as evaluated:
        evaluate_model(
            str(directory),
            str(text_file),
            sequences=2,
            sequence_length=32,
            device="cpu",
            micro_batch_tokens=64,
            tick=lambda share: None,
        )
    assert evaluated.value.code == code


def test_the_command_shows_one_message(
    tmp_path: Path, text_file: Path, model: Callable[[dict[str, Any]], Path]
) -> None:
    directory = model(definition(pre_tokenizer=split_by(PROSE_CATASTROPHE)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "strucprune_core.commands.main", "evaluate", directory),
            *("--text", text_file, "--sequences", "1", "--sequence-length", "32", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "invalid_checkpoint"
