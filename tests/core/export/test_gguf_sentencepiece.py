"""SentencePiece's tokenizers in GGUF's terms: the runtime's algorithm finds the same tokens."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from strucprune_core.errors import InvalidSpec
from strucprune_core.export.gguf_sentencepiece import puts_space_first
from strucprune_core.export.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    GgufVocabulary,
    read_vocabulary,
)
from strucprune_core.storage.local import LocalStore
from tests.support.sentencepiece import (
    BYTES,
    METASPACE,
    PREPEND,
    REPLACE,
    sentencepiece_tokenizer,
)
from tests.support.text import make_text


def read(tokenizer: dict[str, Any]) -> GgufVocabulary:
    """Its vocabulary, of one more id than it has tokens."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(tokenizer))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return read_vocabulary(
            LocalStore(Path(folder)),
            ("tokenizer.json", "tokenizer_config.json"),
            {},
            len(tokenizer["model"]["vocab"]) + 1,
        )


@cache
def both() -> tuple[Tokenizer, GgufVocabulary]:
    """One tokenizer, as transformers has it and as GGUF does."""
    tokenizer = sentencepiece_tokenizer()
    return Tokenizer.from_str(json.dumps(tokenizer)), read(tokenizer)


def as_a_runtime(text: str, vocabulary: GgufVocabulary) -> list[int]:
    """Tokens of a text by scores alone, as GGUF runtimes form them: the best neighbours first."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    symbols = list(" " + text if vocabulary.splitting.space_first and text else text)
    symbols = ["▁" if symbol == " " else symbol for symbol in symbols]
    while True:
        pairs = [
            (vocabulary.splitting.scores[ids[left + right]], -place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in ids
        ]
        if not pairs:
            break
        place = -max(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return [
        number
        for symbol in symbols
        for number in (
            [ids[symbol]]
            if symbol in ids
            else [ids[BYTES[byte]] for byte in symbol.encode("utf-8")]
        )
    ]


def test_what_a_vocabulary_says() -> None:
    _, vocabulary = both()
    splitting = vocabulary.splitting
    assert (splitting.model, splitting.pre, splitting.space_first) == ("llama", "default", True)
    assert list(splitting.merges) == []
    assert vocabulary.token_types[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert vocabulary.token_types[259] == NORMAL
    assert vocabulary.token_types[-1] == UNUSED
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)


words = st.sampled_from(
    [*make_text().split()[:60], "aaaa", "aaa", "é", "日本", "\n", "x1", "", "…"]
)


@given(st.lists(words, max_size=12).map(" ".join))
def test_scores_form_the_tokens_that_merges_form(text: str) -> None:
    tokenizer, vocabulary = both()
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert as_a_runtime(text, vocabulary) == expected


@pytest.mark.parametrize(
    ("normaliser", "pre_tokenizer", "space_first"),
    [
        ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None, True),
        (REPLACE, None, False),
        (None, METASPACE, True),
        (None, {**METASPACE, "prepend_scheme": "always"}, True),
        (None, {**METASPACE, "prepend_scheme": "never"}, False),
    ],
)
def test_a_space_before_the_text(
    normaliser: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None, space_first: bool
) -> None:
    raw = {
        **sentencepiece_tokenizer(),
        "normalizer": normaliser,
        "pre_tokenizer": pre_tokenizer,
    }
    first = Tokenizer.from_str(json.dumps(raw)).encode("a", add_special_tokens=False).tokens[0]
    assert puts_space_first(raw) is space_first is first.startswith("▁")


def reordered(merges: list[list[str]]) -> list[list[str]]:
    """The first piece that has two merges gets one of them at the end."""
    joined = [left + right for left, right in merges]
    place = next(place for place, text in enumerate(joined) if joined.count(text) > 1)
    return [*merges[:place], *merges[place + 1 :], merges[place]]


@pytest.mark.parametrize(
    "change",
    [
        {"merges": lambda merges: merges[:-1]},
        {"merges": reordered},
        {"vocab": lambda vocab: {text: n for text, n in vocab.items() if text != "<0x0A>"}},
        {"vocab": lambda vocab: {**vocab, "a" * 129: len(vocab)}},
    ],
)
def test_what_scores_cannot_say_is_refused(change: dict[str, Any]) -> None:
    tokenizer = sentencepiece_tokenizer()
    for key, made in change.items():
        tokenizer["model"][key] = made(tokenizer["model"][key])
    with pytest.raises(InvalidSpec, match=r"byte fallback|characters") as refused:
        read(tokenizer)
    assert refused.value.field == "pruning.exports"


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": PREPEND},
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": None, "pre_tokenizer": {**METASPACE, "split": True}},
        {"normalizer": None, "pre_tokenizer": {**METASPACE, "replacement": "_"}},
        {"pre_tokenizer": METASPACE},
    ],
    ids=str,
)
def test_other_ways_to_change_a_text_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="byte fallback"):
        read({**sentencepiece_tokenizer(), **change})
