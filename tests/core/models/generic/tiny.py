"""Tiny checkpoints of architectures that run in transformers' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.coverage.tiny import tiny_config, tiny_model
from tests.support.text import make_text
from tests.support.tiny_llama import save_tokenizer

VOCABULARY = 512


def save_tiny(model_type: str, directory: Path, **changes: Any) -> Path:
    """Write a tiny model of an architecture with random weights, and a tokenizer."""
    config = tiny_config(model_type, **changes)
    config.get_text_config().vocab_size = VOCABULARY
    tiny_model(config).save_pretrained(directory)
    save_tokenizer(directory, text=make_text(), vocab=VOCABULARY)
    return directory
