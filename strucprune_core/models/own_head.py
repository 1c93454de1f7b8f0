"""Decides which head counts if one is stored although config.json ties it to the embedding.

transformers (from version 5 on) ties them only if their values are equal. It keeps a head of other
values, whatever `tie_word_embeddings` says. Such files come from fine-tuning the head of a tied
model separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import PIECE_BYTES, TensorReader
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.fields import RawConfig


def with_own_head(
    config: ModelConfig, index: CheckpointIndex, tick: Callable[[], None]
) -> ModelConfig:
    """The configuration of the model as transformers loads it: untied if the values differ.

    Reads both matrices, in pieces, up to the first difference; nothing if no head is stored.

    Args:
        config: The configuration by config.json.
        index: The checkpoint.
        tick: Called before each piece: a safe point to stop at.
    """
    if not config.tie_word_embeddings or config.names.head not in index.tensors:
        return config
    reader = TensorReader(index)
    infos = [reader.info(name) for name in (config.names.embedding, config.names.head)]
    step = max(1, PIECE_BYTES * config.vocab_size // max(info.size_bytes for info in infos))
    for start in range(0, config.vocab_size, step):
        tick()
        stop = min(start + step, config.vocab_size)
        embedding, head = (reader.rows(info.name, start, stop) for info in infos)
        if not torch.equal(embedding, head):
            return replace(config, tie_word_embeddings=False)
    return config


def own_head_warning(raw: RawConfig, config: ModelConfig) -> str | None:
    """A warning if a head was kept although config.json ties it; else None."""
    if config.tie_word_embeddings or not parse_config(raw).tie_word_embeddings:
        return None
    return (
        f"config.json ties the head to the embedding, but the files hold another "
        f"'{config.names.head}'. transformers keeps it, and so does the pruned checkpoint, whose "
        "config.json says tie_word_embeddings: false. transformers before version 5 ties the dense "
        "model all the same, and computes other logits."
    )
