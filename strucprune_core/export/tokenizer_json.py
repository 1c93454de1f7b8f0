"""Reads parts of a tokenizer.json without trusting it; its errors. No torch, no gguf."""

from __future__ import annotations

from typing import Any

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec

TOKENIZER = "tokenizer.json"


def unsupported(what: str) -> InvalidSpec:
    """The error for a tokenizer that GGUF cannot express, because it has `what`."""
    return InvalidSpec(
        f"the gguf export does not support a tokenizer with {what}",
        field="pruning.exports",
        remedy="Leave 'gguf' out; it needs SentencePiece as in Llama 2 and Mistral, or "
        "byte-level BPE that splits texts as GPT-2, SmolLM, Llama 3, Qwen2 or Mistral's Tekken do.",
    )


def malformed(what: str) -> InvalidCheckpoint:
    """The error for a file that is not a tokenizer.json; `what` is wrong."""
    return InvalidCheckpoint(
        f"{TOKENIZER} is malformed: {what}",
        remedy="Save the tokenizer again (AutoTokenizer, from_pretrained, save_pretrained).",
    )


def as_object(value: Any, name: str) -> dict[str, Any]:
    """`value`, which must be an object (else InvalidCheckpoint)."""
    if not isinstance(value, dict):
        raise malformed(f"{name} is not an object")
    return value


def as_list(value: Any, name: str) -> list[Any]:
    """`value`, which must be a list (else InvalidCheckpoint)."""
    if not isinstance(value, list):
        raise malformed(f"{name} is not a list")
    return value


def as_text(value: Any, name: str) -> str:
    """A string that UTF-8 can hold (JSON can escape half a surrogate pair)."""
    if not isinstance(value, str):
        raise malformed(f"{name} is not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise malformed(f"{name} {shown(value)} is not valid Unicode") from error
    return value


def as_token_id(value: Any, vocab_size: int) -> int:
    """`value`, which must be the number of a token (else InvalidCheckpoint)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise malformed(f"{shown(value)} is not a token id from 0 to {vocab_size - 1:,}")
    return value


def steps(step: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or a single step."""
    if step is None:
        return []
    step = as_object(step, key)
    if step.get("type") != "Sequence":
        return [step]
    return [as_object(part, key) for part in as_list(step.get(key), key)]
