"""tokenizer.json in GGUF's terms, and which tokenizers have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer

from embedded.model import ensure_model, gguf_path
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec
from strucprune_core.export.gguf_vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
    read_vocabulary,
)
from strucprune_core.storage.local import LocalStore

DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LETTERS = {**BYTES, "use_regex": False}
# As the models' own tokenizer.json have it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(regex: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": "Isolated",
        "invert": False,
    }


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def plain() -> dict[str, Any]:
    """A tokenizer of six tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<s>", **flags, "special": True},
            {"id": 5, "content": "<tool>", **flags, "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": BYTES,
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4},
            "merges": [["a", "b"]],
            "byte_fallback": False,
            "ignore_merges": False,
        },
    }


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., GgufVocabulary]:
    def written(tokenizer: dict[str, Any], **files: Any) -> GgufVocabulary:
        settings = files.get("settings", {"bos_token": "<s>", "eos_token": {"content": "<s>"}})
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        names = ("tokenizer.json", "tokenizer_config.json")
        return read_vocabulary(LocalStore(tmp_path), names, files.get("config", {}), 7)

    return written


def test_tokens_and_their_kinds(read: Callable[..., GgufVocabulary]) -> None:
    found = read(plain())
    assert found.tokens == ["<s>", "a", "b", "ab", "Ġ", "<tool>", "[PAD6]"]
    assert found.token_types == [CONTROL, *[NORMAL] * 4, USER_DEFINED, UNUSED]
    assert found.splitting.merges == ["a b"]
    assert found.special_ids == {"bos": 0, "eos": 0}
    assert (found.add_bos, found.add_eos, found.chat_template) == (False, False, None)


def test_old_files_join_their_merges(read: Callable[..., GgufVocabulary]) -> None:
    tokenizer = plain()
    tokenizer["model"]["merges"] = ["a b"]
    assert read(tokenizer) == read(plain())


def test_special_tokens_of_the_config(read: Callable[..., GgufVocabulary]) -> None:
    config = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 99}
    found = read(plain(), settings={"bos_token": "<s>", "chat_template": "{{ 1 }}"}, config=config)
    assert found.special_ids == {"bos": 0, "eos": 2}
    assert found.chat_template == "{{ 1 }}"


def template(*pieces: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": list(pieces),
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
            "b": {"id": "b", "ids": [2], "tokens": ["b"]},
        },
    }


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
OTHER = {"SpecialToken": {"id": "b", "type_id": 0}}


@pytest.mark.parametrize(
    ("post", "adds"),
    [
        (BYTES, (False, False)),
        (template(TEXT), (False, False)),
        (template(BOS, TEXT), (True, False)),
        (template(BOS, TEXT, BOS), (True, True)),
        ({"type": "Sequence", "processors": [BYTES, template(BOS, TEXT)]}, (True, False)),
    ],
)
def test_tokens_around_a_text(
    read: Callable[..., GgufVocabulary], post: dict[str, Any], adds: tuple[bool, bool]
) -> None:
    found = read({**plain(), "post_processor": post})
    assert (found.add_bos, found.add_eos) == adds


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTES, False, "gpt-2"),
        (sequence(BYTES), False, "gpt-2"),
        (sequence(DIGITS, BYTES), False, "smollm"),
        (sequence(split_by(LLAMA3), LETTERS), True, "llama-bpe"),
        (sequence(split_by(LLAMA3.replace("{1,3}", "")), LETTERS), False, "qwen2"),
        (sequence(split_by(TEKKEN), LETTERS), True, "tekken"),
    ],
)
def test_ways_to_split_have_names(
    read: Callable[..., GgufVocabulary],
    pre_tokenizer: dict[str, Any],
    ignore_merges: bool,
    name: str,
) -> None:
    tokenizer = {**plain(), "pre_tokenizer": pre_tokenizer}
    tokenizer["model"]["ignore_merges"] = ignore_merges
    Tokenizer.from_str(json.dumps({"truncation": None, "padding": None, **tokenizer}))  # it is one
    assert read(tokenizer).splitting.pre == name


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
        {"pre_tokenizer": LETTERS},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": sequence(DIGITS)},
        {"pre_tokenizer": sequence({**DIGITS, "individual_digits": False}, BYTES)},
        {"pre_tokenizer": sequence(split_by(LLAMA3), LETTERS)},  # without ignore_merges
        {"pre_tokenizer": sequence(split_by("a+"), LETTERS)},
        {"pre_tokenizer": sequence({**split_by(LLAMA3), "invert": True}, LETTERS)},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"post_processor": {"type": "BertProcessing"}},
        {"post_processor": template(OTHER, TEXT)},
        {"post_processor": template(BOS, BOS, TEXT)},
        {"model": {**plain()["model"], "type": "Unigram"}},
        {"model": {**plain()["model"], "byte_fallback": True}},
        {"model": {**plain()["model"], "end_of_word_suffix": "</w>"}},
    ],
    ids=str,
)
def test_other_tokenizers_are_refused(
    read: Callable[..., GgufVocabulary], change: dict[str, Any]
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        read({**plain(), **change})
    assert refused.value.field == "pruning.exports"
    assert "Leave 'gguf' out" in str(refused.value.remedy)


def with_model(**change: Any) -> dict[str, Any]:
    tokenizer = plain()
    return {**tokenizer, "model": {**tokenizer["model"], **change}}


@pytest.mark.parametrize(
    "tokenizer",
    [
        with_model(vocab=["a"]),
        with_model(vocab={"a": 7}),
        with_model(vocab={"a": -1}),
        with_model(vocab={"a": True}),
        with_model(vocab={"a": 1.0}),
        with_model(vocab={"a": 1, "b": 1}),
        with_model(vocab={"\ud800": 1}),
        with_model(vocab={"a": 1, "<s>": 2}),  # one text with two ids
        with_model(merges=None),
        with_model(merges=[["a"]]),
        with_model(merges=[["a", 1]]),
        with_model(merges=[["a b", "c"]]),
        with_model(merges=["ab"]),
        {**plain(), "model": None},
        {**plain(), "added_tokens": [1]},
        {**plain(), "added_tokens": [{"id": "0", "content": "x"}]},
        {**plain(), "pre_tokenizer": 1},
        {**plain(), "post_processor": {"type": "TemplateProcessing", "single": 1}},
        {**plain(), "post_processor": template({"SpecialToken": {"id": ["x"]}}, TEXT)},
    ],
    ids=str,
)
def test_malformed_files(read: Callable[..., GgufVocabulary], tokenizer: dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint):
        read(tokenizer)


@pytest.mark.real_model
def test_as_the_model_was_published(tmp_path: Path) -> None:
    """SmolLM2's own tokenizer.json gives the metadata of the GGUF file it was published in."""
    model = ensure_model()
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    # The converted model lacks the first step of the published one.
    tokenizer["pre_tokenizer"] = sequence(DIGITS, tokenizer["pre_tokenizer"])
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    found = read_vocabulary(LocalStore(tmp_path), names, {}, 49152)
    reader = GGUFReader(gguf_path())

    def published(key: str) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        assert field is not None, key
        return field.contents()

    assert found.splitting.pre == published("ggml.pre")
    assert found.tokens == published("ggml.tokens")
    assert found.token_types == published("ggml.token_type")
    assert found.splitting.merges == published("ggml.merges")
    assert found.add_bos == published("ggml.add_bos_token")
    assert found.chat_template == published("chat_template")
    special = ("bos", "eos", "unknown", "padding")
    ids = {name: published(f"ggml.{name}_token_id") for name in special}
    assert found.special_ids == ids
