"""Tensors outside the decoder layers: which of them a text needs. No torch."""

from __future__ import annotations

import re

from strucprune_core.models.config import ModelConfig

# What sees or hears may be larger than the decoder beside it.
_NOT_TEXT = re.compile("vision|visual|image|vqmodel|audio|speech")
# But these tables have rows for some token ids, and are looked up in whatever the tokens are.
_TABLES = re.compile(r"(^|\.)embed_(vision|audio)\.")


def is_text(name: str) -> bool:
    """Whether a tensor or module outside the layers has a part in a text."""
    return _NOT_TEXT.search(name) is None or _TABLES.search(name) is not None


def held_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that transformers' modules hold all the time, by name: neither layers nor vocabulary.

    They are small, but for tables of inputs for each layer (Gemma 3n, Gemma 4).
    """
    if config.generic is None:
        return {}
    vocabulary = {config.names.embedding, config.names.head}
    return {
        name: shape
        for name, shape in config.generic.tensors
        if name not in vocabulary and is_text(name)
    }
