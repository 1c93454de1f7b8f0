"""Text that the model writes itself, with one decoder layer resident and all sequences at once.

Every step adds one token to every sequence. A mapped scratch file holds keys and values of the
tokens so far. So a step costs one token's work per sequence, and memory holds one layer and the
keys and values of a few sequences. In return, the weights are read once per step, `length` times in
all: at memory speed if the model fits the page cache, else at the disk's. Disk space: 2 * layers *
sequences * length * kv_heads * head_dim * 4 bytes.

The idea to calibrate on such text is that of Williams, Chrysostomou & Aletras 2024 (arXiv
2410.17170). Tokens are drawn from the model's own distribution, at temperature 1, without top-k or
top-p. A sequence whose text ends continues with the next text, like the packed documents that
models are trained on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.errors import ScratchUnavailable
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.models.attention import attend, attend_last, rotate_first
from strucprune_core.models.config import LayerConfig, ModelConfig
from strucprune_core.models.decoder import Decoder, rotations_of
from strucprune_core.models.forward import Tick, micro_batches
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed, rows_of_tokens, sample_tokens
from strucprune_core.scratch.arrays import temporary_array

# Sequences that pass a layer together are bounded in number, and in bytes of keys and values. Not a
# setting: groups of another size round differently, and give another text.
_MAX_GROUP = 256
_GROUP_CACHE_BYTES = 64 << 20
_FP32_BYTES = 4

Step = Callable[[NDArray[np.int32], Tick], NDArray[np.float32]]
"""The last layer's output for the last of the tokens, (sequences x d), from all of them so far."""


@torch.inference_mode()
def generate(
    stream: ModelStream,
    first: NDArray[np.int32],
    length: int,
    seed: int,
    scratch: Path,
    tick: Tick = lambda: None,
    alive: Tick = lambda: None,
) -> NDArray[np.int32]:
    """Continue sequences of one token each, (sequences,), to (sequences x length).

    Args:
        stream: The model.
        first: The first token of each sequence.
        length: Tokens per sequence, the first included.
        seed: Seed of the draw; the same seed gives the same text on the same machine.
        scratch: Directory for keys and values.
        tick: Called after each layer of each step: `layers * (length - 1)` times.
        alive: Called at safe points before that, where a generic model is tried.

    Raises:
        ScratchUnavailable: the scratch directory has no space.
    """
    tokens = np.empty((len(first), length), dtype=np.int32)
    tokens[:, 0] = first
    generator = np.random.Generator(np.random.PCG64(seed))
    with _naming_samples():
        one_more = stepping(stream, len(first), length, scratch, alive)
        for position in range(length - 1):
            hidden = one_more(tokens[:, : position + 1], tick)
            tokens[:, position + 1] = sample_tokens(stream, hidden, generator)
    return tokens


def stepping(
    stream: ModelStream, sequences: int, length: int, scratch: Path, alive: Tick = lambda: None
) -> Step:
    """What runs one token after another, of sequences of equal length.

    Args:
        stream: The model.
        sequences: How many there are.
        length: Most tokens of one.
        scratch: Directory for keys and values.
        alive: Called at safe points before that, where a generic model is tried.

    Raises:
        ScratchUnavailable: the scratch directory has no space. So does a step.
    """
    if stream.config.generic is not None:
        # transformers takes seconds and 100 MB to import: only here.
        from strucprune_core.models.generic.steps import step_of

        # In float32: what a cache holds of bfloat16 layers differs from class to class.
        return step_of(stream.in_float32, sequences, length, scratch, _group_of_bytes, alive)
    cache = key_value_cache(scratch, stream.config, sequences, length)
    seen = 0

    def one_more(tokens: NDArray[np.int32], tick: Tick) -> NDArray[np.float32]:
        nonlocal seen
        before, seen = seen, tokens.shape[1]
        if seen == before + 1:
            return step(stream, tokens[:, -1], before, cache, tick)
        return prefill(stream, tokens, cache, scratch, tick)

    return one_more


@torch.inference_mode()
def prefill(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    cache: NDArray[np.float32],
    scratch: Path,
    tick: Tick = lambda: None,
) -> NDArray[np.float32]:
    """Run the first tokens of every sequence through all layers at once, filling the cache.

    Args:
        stream: The model; not a generic one.
        tokens: Token ids, (sequences x n).
        cache: See `key_value_cache`.
        scratch: Directory for hidden states.
        tick: Called after each layer.

    Returns:
        Output of the last layer for the last token, before the final norm, (sequences x d).
    """
    config, (sequences, length) = stream.config, tokens.shape
    hidden = temporary_array(scratch, (sequences, length, config.hidden_size))
    embed(stream, tokens, hidden)
    for layer, weights in stream.layers(range(config.layers)):
        for part in micro_batches(sequences, length, stream.tiles.micro_batch_tokens):
            kept = torch.from_numpy(cache[layer, :, part])
            decoder = _Beginning(config, stream.dtype, kept, stream.transfers)
            x = stream.load(hidden[part])
            stream.put(hidden, part, decoder.forward_layer(config.blocks[layer], x, weights).hidden)
        del weights
        tick()
    return np.array(hidden[:, -1])


def step(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    position: int,
    cache: NDArray[np.float32],
    tick: Tick = lambda: None,
) -> NDArray[np.float32]:
    """Run the token at `position` of every sequence through all layers, extending the cache.

    Returns:
        Output of the last layer, before the final norm, (sequences x d).
    """
    config = stream.config
    hidden = _embed(stream, tokens, position)
    group = _group(config, cache.shape[-2])
    for layer, weights in stream.layers(range(config.layers)):
        for start in range(0, len(tokens), group):
            part = slice(start, start + group)
            kept = torch.from_numpy(cache[layer, :, part])
            decoder = _Continuing(config, stream.dtype, kept, position, stream.transfers)
            x = stream.load(hidden[part, None])
            trace = decoder.forward_layer(config.blocks[layer], x, weights)
            stream.put(hidden, part, trace.hidden[:, 0])
        del weights
        tick()
    return hidden


def key_value_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of the keys and values of one sequence, in all layers."""
    heads = _kv_heads(config)
    return config.layers * 2 * heads * length * config.head_dim * _FP32_BYTES


def _kv_heads(config: ModelConfig) -> int:
    """Key-value heads of the layer with most of them."""
    return max(block.kv_heads for block in config.blocks)


def key_value_cache(
    directory: Path, config: ModelConfig, sequences: int, length: int
) -> NDArray[np.float32]:
    """A mapped scratch file, (layers x 2 x sequences x kv_heads x length x head_dim).

    Raises:
        ScratchUnavailable: the directory has no space for it.
    """
    shape = (config.layers, 2, sequences, _kv_heads(config), length, config.head_dim)
    return temporary_array(directory, shape)


@contextlib.contextmanager
def _naming_samples() -> Iterator[None]:
    """Scratch that is full inside is full of what layers keep of the samples."""
    try:
        yield
    except ScratchUnavailable as error:
        raise ScratchUnavailable(
            f"there is no space for keys and values: {error.message}",
            field="calibration.samples",
            remedy=f"{ScratchUnavailable.usual_remedy} Or ask for fewer or shorter sequences.",
        ) from error


def _group(config: ModelConfig, length: int) -> int:
    per_sequence = 2 * _kv_heads(config) * config.head_dim * length * _FP32_BYTES
    return _group_of_bytes(per_sequence)


def _group_of_bytes(per_sequence: int) -> int:
    """Sequences that pass a layer together, by the bytes that it keeps of each."""
    return max(1, min(_MAX_GROUP, _GROUP_CACHE_BYTES // max(1, per_sequence)))


def _embed(stream: ModelStream, tokens: NDArray[np.int32], position: int) -> NDArray[np.float32]:
    """The first layer's input for a few tokens, (n x d)."""
    config, names = stream.config, stream.config.names
    rows = rows_of_tokens(stream, tokens)
    if names.project_in is not None:
        rows = rows @ stream.tensor(names.project_in).cpu().T
    if names.positions is not None:
        at = position + config.position_offset
        rows = rows + stream.source.rows(names.positions, at, at + 1, dtype=torch.float32)
    hidden: NDArray[np.float32] = rows.numpy()
    return hidden


class _Beginning(Decoder):
    """The decoder for the first tokens of sequences, whose keys and values the cache receives."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, cache: Tensor, transfers: Transfers
    ) -> None:
        super().__init__(config, dtype)
        self._transfers = transfers
        self._cache = cache  # (2, b, kv_heads, length, head_dim)

    def kv_head_panels(self, block: LayerConfig, weights: LayerWeights) -> Iterator[range]:
        """All at once, as the cache holds them."""
        yield range(block.kv_heads)

    def mix(self, block: LayerConfig, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention, (b, n, heads * head_dim); turned by angles for the cache's length."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        length = query.shape[2]
        if block.rope is not None:
            rotations = rotations_of(
                block.rope, self.config.rotary_dims, self._cache.shape[-2], query.device
            )
            here = (rotations[0][:length], rotations[1][:length])
            query, key = (rotate_first(x, here) for x in (query, key))
        self._transfers.count(to_host=key.nbytes + value.nbytes)
        self._cache[0, :, : block.kv_heads, :length] = key.cpu()
        self._cache[1, :, : block.kv_heads, :length] = value.cpu()
        return attend(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            rotations=None,
            scale=self.config.attention_scale,
            soft_cap=self.config.attention_soft_cap,
            window=block.window,
        )


class _Continuing(Decoder):
    """The decoder for one new token per sequence, whose attention sees the cached ones as well."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        cache: Tensor,
        position: int,
        transfers: Transfers,
    ) -> None:
        super().__init__(config, dtype)
        self._transfers = transfers
        self._cache, self._position = cache, position  # (2, b, kv_heads, length, head_dim)

    def kv_head_panels(self, block: LayerConfig, weights: LayerWeights) -> Iterator[range]:
        """All at once: a few tokens take little memory, and the cache holds all heads."""
        yield range(block.kv_heads)

    def mix(self, block: LayerConfig, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of the new position to itself and all before, (b, 1, heads * head_dim)."""
        at, config = self._position, self.config
        if block.rope is not None:
            rotations = rotations_of(
                block.rope, config.rotary_dims, self._cache.shape[-2], query.device
            )
            here = (rotations[0][at : at + 1], rotations[1][at : at + 1])
            query, key = (
                rotate_first(x.transpose(1, 2), here).transpose(1, 2) for x in (query, key)
            )
        self._transfers.count(to_host=key.nbytes + value.nbytes)
        self._cache[0, :, : block.kv_heads, at] = key[:, 0].cpu()
        self._cache[1, :, : block.kv_heads, at] = value[:, 0].cpu()
        first = 0 if block.window is None else max(0, at + 1 - block.window)
        seen = self._cache[:, :, : block.kv_heads, first : at + 1].to(query.device)
        self._transfers.count(to_device=seen.nbytes)
        return attend_last(
            query,
            seen[0],
            seen[1],
            scale=config.attention_scale,
            soft_cap=config.attention_soft_cap,
        )
