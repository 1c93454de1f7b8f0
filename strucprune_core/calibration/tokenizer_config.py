"""tokenizer_config.json and chat_template.jinja, read without trusting them. No torch.

Nothing is rendered here: a chat template is a program, which only the process that reads texts runs
(`chat`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from strucprune_core.checkpoint.hostile_json import parse_object
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec
from strucprune_core.storage.store import Readable

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CONVERTIBLE: tuple[tuple[str, ...], ...] = (("tokenizer.model",), ("vocab.json", "merges.txt"))
"""Files of older tokenizers, each enough to make a tokenizer.json."""
CHAT_TEMPLATE = "chat_template.jinja"
MAX_CONFIG_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 20
_MAX_DEPTH = 16
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """A model's special tokens and chat template.

    Attributes:
        special_tokens: Text of each special token by its name ("eos_token").
        chat_template: Jinja source, None if the model has none.
    """

    special_tokens: Mapping[str, str]
    chat_template: str | None


def read_tokenizer_config(store: Readable, files: Collection[str]) -> TokenizerConfig:
    """Read both files; a model without them has neither special tokens nor a template.

    Args:
        store: The model.
        files: Names of the model's side files that exist.

    Raises:
        InvalidCheckpoint: a file is too large or malformed.
        StorageError: the store refused or failed.
    """
    config: dict[str, Any] = {}
    if TOKENIZER_CONFIG in files:
        data = _read(store, TOKENIZER_CONFIG, MAX_CONFIG_BYTES)
        config = parse_object(data, TOKENIZER_CONFIG, max_depth=_MAX_DEPTH)
    tokens = {name: _content(config.get(name)) for name in _TOKEN_NAMES}
    template = _default_template(config.get("chat_template"))
    if CHAT_TEMPLATE in files:  # As in transformers, the file wins where both exist.
        template = _decoded(_read(store, CHAT_TEMPLATE, MAX_TEMPLATE_BYTES))
    return TokenizerConfig({name: text for name, text in tokens.items() if text}, template)


def tokenizer_source(files: Collection[str]) -> str | None:
    """The files that hold a model's tokenizer, for messages; None if there are none."""
    if TOKENIZER in files:
        return TOKENIZER
    for names in CONVERTIBLE:
        if all(name in files for name in names):
            return " and ".join(names)
    return None


def check_chat_template(config: TokenizerConfig) -> str:
    """The model's chat template.

    Raises:
        InvalidSpec: it has none.
    """
    if not config.chat_template:
        raise InvalidSpec(
            "the model has no chat template",
            field="calibration.chat_template",
            remedy=f"Leave that field out, or add {CHAT_TEMPLATE} to the model.",
        )
    return config.chat_template


def _read(store: Readable, name: str, limit_bytes: int) -> bytes:
    info = store.stat(name)
    if info is None or info.size_bytes > limit_bytes:
        raise InvalidCheckpoint(
            f"{name} is missing or larger than {limit_bytes} bytes",
            remedy="Copy it again. No model has such a large one: check what it is.",
        )
    return bytes(store.read(name, 0, info.size_bytes))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidCheckpoint(
            f"{CHAT_TEMPLATE} is not UTF-8: {error}", remedy="Convert it to UTF-8."
        ) from error


def _content(token: Any) -> str | None:
    """A special token is stored as its text, or as an object with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _default_template(stored: Any) -> str | None:
    """One template, or a list of named ones, of which "default" is for plain conversations."""
    if isinstance(stored, list):
        named = {entry.get("name"): entry for entry in stored if isinstance(entry, dict)}
        stored = named.get("default", {}).get("template")
    if not isinstance(stored, str):
        return None
    if len(stored) > MAX_TEMPLATE_BYTES:
        raise InvalidCheckpoint(
            f"the chat template is longer than {MAX_TEMPLATE_BYTES} characters",
            remedy="Shorten it, or remove it from the model.",
        )
    return stored
