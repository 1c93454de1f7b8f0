from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from strucprune_core.calibration import text as module
from strucprune_core.calibration.text import (
    Text,
    calibration_windows,
    digest,
    evaluation_windows,
)
from strucprune_core.errors import InvalidText
from strucprune_core.storage.local import LocalStore
from tests.core.calibration.stored import of, stored, words
from tests.support.text import make_text

# How Llama 3's tokenizer splits: a line's end belongs to the punctuation before it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROSE = (
    make_text(12)
    + "\n\n\n  Naïve café — “quoted”\u2026 ends.\n\n\n\n" * 3
    + "Приве́т, мир. 数学 は 楽しい. 🦙🦙 x = 10 000\r\nnext\tline \n" * 4
    + make_text(4, seed=1)
)


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Blank lines at the end of texts are what gives a tokenizer its token for "\n\n".
    tokenizer.train_from_iterator([PROSE, "a.\n\n", "b\n\n", "c\n\n\n"] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "gpt2":
        return trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(pre_tokenizers.Sequence([split, byte_level]))


def whole(tokenizer: Tokenizer, content: str) -> list[int]:
    ids: list[int] = tokenizer.encode(content).ids
    return ids


def test_evaluation_windows_are_the_beginning_of_the_text(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    ids = whole(tokenizer, PROSE)
    windows = evaluation_windows(stored(tmp_path, PROSE), of(tokenizer), 5, 40)
    assert windows.shape == (5, 40)
    assert windows.dtype == np.int32
    assert windows.flatten().tolist() == ids[:200]


@pytest.mark.parametrize("block_bytes", [37, 64, 101, 500, 4096])
def test_blocks_give_the_tokens_of_the_whole_text(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    # Small blocks end inside characters of several bytes, words, blank lines and digits.
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    ids = whole(tokenizer, PROSE)
    windows = evaluation_windows(stored(tmp_path, PROSE), of(tokenizer), 1, len(ids))
    assert windows[0].tolist() == ids


@pytest.mark.parametrize("unit", ["数学", "ab", "  ", "\n", "🦙"])
def test_a_text_without_words_is_cut_all_the_same(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    # Nothing to cut at: memory must stay bounded, even if a token at each cut differs.
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    seen: list[int] = []

    class Watched:
        def encode(self, text: str, add_special_tokens: bool) -> object:
            seen.append(len(text.encode()))
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    content = unit * 500
    watched: Any = Watched()
    windows = evaluation_windows(stored(tmp_path, content), of(watched), 1, 20)
    assert tokenizer.decode(windows[0].tolist()).rstrip("\ufffd") in content
    assert max(seen) <= 5 * 4 * 64  # four blocks of characters, of up to four bytes each


def test_special_tokens_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers.processors import TemplateProcessing

    plain = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    plain.add_special_tokens(["<s>"])
    bos = plain.token_to_id("<s>")
    plain.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    windows = evaluation_windows(stored(tmp_path, PROSE), of(plain), 1, 500)
    assert windows[0].tolist().count(bos) == 1
    assert windows[0, 0] == bos


def test_calibration_windows_are_parts_of_the_text_that_do_not_overlap(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    numbers = " ".join(f"w{i}" for i in range(900))
    ids = whole(tokenizer, numbers)
    windows = calibration_windows(stored(tmp_path, numbers), of(tokenizer), 12, 50, 0)
    assert windows.shape == (12, 50)
    assert windows.dtype == np.int32
    starts = []
    for window in windows.tolist():
        found = [i for i in range(len(ids)) if ids[i : i + 50] == window]
        assert len(found) == 1
        starts += found
    assert all(after - before >= 50 for before, after in pairwise(sorted(starts)))
    assert starts != sorted(starts)  # in random order: the held-out ones are not the text's end


def test_the_seed_decides(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = stored(tmp_path, PROSE)
    draws = [calibration_windows(text, of(tokenizer), 4, 32, seed) for seed in (0, 0, 1, 2**63 - 1)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), samples=st.integers(1, 8), length=st.integers(1, 60))
def test_any_draw_lies_inside_the_text(
    tmp_path_factory: pytest.TempPathFactory, seed: int, samples: int, length: int
) -> None:
    text = stored(tmp_path_factory.mktemp("text"), " ".join(f"w{i}" for i in range(500)))
    windows = calibration_windows(text, of(words()), samples, length, seed)
    steps = np.diff(windows, axis=1)
    assert (steps == 1).all()  # word i is token i
    starts = np.sort(windows[:, 0])
    assert (np.diff(starts) >= length).all()


def test_exactly_enough_tokens_do(tmp_path: Path) -> None:
    text = stored(tmp_path, " ".join(f"w{i}" for i in range(500)))
    windows = calibration_windows(text, of(words()), 10, 50, 3)
    assert sorted(windows.flatten().tolist()) == list(range(500))


def test_calibration_reads_no_more_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALIBRATION_TEXT_BYTES", 1000)
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    text = stored(tmp_path, " ".join(f"w{i}" for i in range(500)))
    windows = calibration_windows(text, of(words()), 5, 10, 0)
    assert windows.max() <= 1000 / len("w10 ")


@pytest.mark.parametrize("draw", [partial(calibration_windows, seed=0), evaluation_windows])
def test_too_short_says_by_how_much(tmp_path: Path, draw: Callable[..., object]) -> None:
    text = stored(tmp_path, " ".join(f"w{i}" for i in range(500)))
    with pytest.raises(InvalidText, match=r"500 tokens; 11 sequences of 50 need 550") as caught:
        draw(text, of(words()), 11, 50)
    assert caught.value.field == "calibration.uri"
    assert caught.value.remedy


@pytest.mark.parametrize("block_bytes", [7, 1 << 20])
@pytest.mark.parametrize("bad", [b"\xff\xfe", b"caf\xe9 ole", b"\xf0\x9f\xa6"])
def test_text_that_is_not_utf8_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, block_bytes: int
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    text = stored(tmp_path, b"w1 w2 w3 w4 w5 " + bad)
    with pytest.raises(InvalidText, match="not UTF-8") as caught:
        calibration_windows(text, of(words()), 1, 2, 0)
    assert caught.value.field == "calibration.uri"
    with pytest.raises(InvalidText, match="not UTF-8"):
        evaluation_windows(text, of(words()), 1, 50)


def test_an_empty_text_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(InvalidText, match="0 tokens"):
        evaluation_windows(stored(tmp_path, ""), of(words()), 1, 2)


def test_a_text_that_vanished(tmp_path: Path) -> None:
    text = Text(LocalStore(tmp_path), "gone.txt", "evaluation.uri")
    with pytest.raises(InvalidText, match=r"gone\.txt") as caught:
        evaluation_windows(text, of(words()), 1, 2)
    assert caught.value.field == "evaluation.uri"


def test_digest_is_that_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 10)
    assert digest(stored(tmp_path, PROSE)) == hashlib.sha256(PROSE.encode()).hexdigest()
