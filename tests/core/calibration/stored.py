"""Files and tokenizers for the tests of calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from strucprune_core.calibration.text import Text
from strucprune_core.calibration.tokenizer import TextTokenizer
from strucprune_core.storage.local import LocalStore

END = 499  # "w499" ends documents in these tests


def stored(directory: Path, content: str | bytes, name: str = "text.txt") -> Text:
    data = content.encode() if isinstance(content, str) else content
    (directory / name).write_bytes(data)
    return Text(LocalStore(directory), name, "calibration.uri")


def json_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def of(tokenizer: Tokenizer, vocab_size: int = 2**20) -> TextTokenizer:
    """As a model with this number of embeddings uses it."""
    return TextTokenizer(tokenizer, vocab_size)


def words() -> Tokenizer:
    """Word i is token i."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(500)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
