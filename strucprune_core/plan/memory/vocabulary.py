"""Bytes on the device for embedding and head, which are processed in tiles. No torch.

r rows of a tile, e embedding size, d hidden size, c tokens multiplied with a tile at a time, n all
tokens of a call.
"""

from __future__ import annotations

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.forward import FP32_BYTES

FP64_BYTES = 8


def embedding_bytes(config: ModelConfig, tokens: int, tiles: Tiles) -> int:
    """Peak while tokens are looked up, as if one tile had all of them."""
    d, e = config.hidden_size, config.embedding_size
    chunk = min(tokens, tiles.head_tokens)
    rows = chunk * e
    into = 0
    if config.names.project_in is not None:
        into, rows = d * e, chunk * (e + d)
    positions = 0 if config.names.positions is None else chunk * d
    looked_up = _tile(config, tiles) + rows
    return FP32_BYTES * (into + max(looked_up, positions)) + FP64_BYTES * chunk


def losses_bytes(config: ModelConfig, tokens: int, tiles: Tiles) -> int:
    """Peak while next-token losses of these tokens are summed up."""
    chunk = min(tokens, tiles.head_tokens)
    # The logits and their exponentials; before them, the input of the head's matrix.
    inner = max(2 * chunk * _rows(config, tiles), _output(config, chunk))
    sums = tokens * (FP32_BYTES + 2 * FP64_BYTES)
    return FP32_BYTES * (_tile(config, tiles) + _ends(config) + inner) + sums


def divergences_bytes(config: ModelConfig, tokens: int, others: int, tiles: Tiles) -> int:
    """Peak while KL divergences of other models from the dense one are summed up, in one chunk."""
    logits = tokens * _rows(config, tiles)
    # The dense model's logits and their exponentials, the other's logits, and theirs.
    inner = max(4 * logits, 2 * logits + _output(config, tokens))
    sums = tokens * (FP32_BYTES + FP64_BYTES) * (1 + others) + tokens * FP64_BYTES * others
    return FP32_BYTES * (_tile(config, tiles) + _ends(config) + inner) + sums


def _rows(config: ModelConfig, tiles: Tiles) -> int:
    return min(tiles.vocabulary_rows, config.vocab_size)


def _tile(config: ModelConfig, tiles: Tiles) -> int:
    return _rows(config, tiles) * config.embedding_size


def _ends(config: ModelConfig) -> int:
    """Final norm and projection."""
    out = 0 if config.names.project_out is None else config.hidden_size * config.embedding_size
    return out + config.hidden_size


def _output(config: ModelConfig, tokens: int) -> int:
    """The final norm: hidden states, a product, and the result."""
    if config.names.final_norm is None:
        return tokens * (config.hidden_size + config.embedding_size)
    return (2 if config.norm.kind == "layer" else 3) * tokens * config.hidden_size
