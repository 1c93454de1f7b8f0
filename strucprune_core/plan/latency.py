"""Seconds of a forward pass, from a model's widths and the table of a device. No torch.

A pass takes what its products take, and what is beside them:

    T = model(d) + product(e, V) + sum over layers of
        layer(d) + sum over matrices of product(in, out)
                 + attention(context, keys, queries per key) + activation(channels)

with d the hidden size, e that of embeddings and V tokens of the vocabulary. Everything on the right
is measured, in transformers' modules: `plan.device_table`.

Between measured widths, times are interpolated linearly in each width. So what grows as
a + b in + c out + d in*out, as reading a matrix and multiplying by it do, is met exactly at all
widths between two measured ones. Not met are steps of kernels: rows of an odd length took up to
twice as long in float32 on the CPU that was tried. Therefore `alignment_warning`.

More never takes less: a time counts as at most that of anything larger (the running minimum over
all axes, from their ends), in whose place it could be computed with zeros. Noise makes times longer
rather than shorter, so this takes some of it away, and more sparsity is never slower. What is
smaller than all that was measured counts as the smallest. What is larger is refused; only the
head's outputs, of which there are as many as tokens, are counted in pieces of the largest width.

The parts are measured of a Llama. Layers of other families have other norms and activations; their
products count as they are, the rest as a Llama's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.config import LayerConfig, ModelConfig
from strucprune_core.models.tensors import layer_tensors
from strucprune_core.plan.device_table import DeviceTable, PassTimes

FIELD = "pruning.target.device"


class NotInTable(InvalidSpec):
    """A part of the model is larger than all that was measured."""


@dataclass(frozen=True)
class Surface:
    """Times over axes, of which each is interpolated linearly.

    Attributes:
        name: What it is of, for messages.
        axes: Measured places, rising.
        seconds: Times, which do not fall along any axis; NaN where nothing was measured.
    """

    name: str
    axes: tuple[tuple[int, ...], ...]
    seconds: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, axes: Sequence[Sequence[int]], times: object) -> Surface:
        """The surface of a table's times; null is NaN."""
        seconds = np.array(times, dtype=np.float64)
        for axis in range(seconds.ndim):
            from_end = np.flip(np.where(np.isnan(seconds), np.inf, seconds), axis)
            least = np.flip(np.minimum.accumulate(from_end, axis=axis), axis)
            seconds = np.where(np.isnan(seconds), np.nan, least)
        return cls(name, tuple(tuple(axis) for axis in axes), seconds)

    def at(self, *places: int) -> float:
        """The time at a place.

        Raises:
            NotInTable: it is beyond what was measured.
        """
        around = [_neighbours(axis, place) for axis, place in zip(self.axes, places, strict=True)]
        total = 0.0
        for corner in product(*around):
            weight = math.prod(share for _, share in corner)
            seconds = self.seconds[tuple(index for index, _ in corner)] if weight else 0.0
            total += weight * float(seconds)
        if math.isnan(total):
            raise self._beyond(places)
        return total

    def _beyond(self, places: Sequence[int]) -> NotInTable:
        return NotInTable(
            f"{self.name} of {' x '.join(f'{place:,}' for place in places)} is larger than what "
            "the device's table holds",
            field=FIELD,
            remedy="Measure a table that holds it, with a larger strucprune bench-device "
            "--largest.",
        )


def _neighbours(axis: tuple[int, ...], place: int) -> list[tuple[int, float]]:
    """The measured places around one, and their shares; a share of NaN beyond the last."""
    if place > axis[-1]:
        return [(len(axis) - 1, math.nan)]
    if place <= axis[0]:
        return [(0, 1.0)]
    above = bisect_right(axis, place - 1)
    low, high = axis[above - 1], axis[above]
    share = (place - low) / (high - low)
    return [(above - 1, 1.0 - share), (above, share)]


class PassModel:
    """Times of one kind of pass on one device.

    Args:
        table: The device.
        times: The pass.
        head: The decode pass of as many sequences: one token of each passes the head.
    """

    def __init__(self, table: DeviceTable, times: PassTimes, head: PassTimes) -> None:
        widths = table.widths
        self.tokens = times.tokens
        self._widest = widths[-1]
        self._longest = times.contexts[-1]
        self._context = Surface.of(
            "attention (cached tokens, width of keys, queries per key)",
            (times.contexts, widths, table.groups),
            times.attention,
        )
        self._product = Surface.of("a matrix (in, out)", (widths, widths), times.products)
        self._head = Surface.of("the head (in, out)", (widths, widths), head.products)
        self._layer = Surface.of("a layer (hidden size)", (widths,), times.layer)
        self._activation = Surface.of("an FFN (channels)", (widths,), times.activation)
        self._model = Surface.of("a model (hidden size)", (widths,), times.model)

    def seconds(self, config: ModelConfig, context: int) -> float:
        """Seconds of a pass.

        Args:
            config: The model, of one of the families; without experts.
            context: Tokens of each sequence in the KV cache before it.

        Raises:
            NotInTable: the model is larger than what was measured.
            InvalidSpec: the parts of the model are not known: it has experts, or runs in
                transformers' own modules.
        """
        check_parts(config)
        if context > self._longest:
            raise NotInTable(
                f"the device's table ends at {self._longest:,} tokens in the KV cache",
                field="pruning.target.context_tokens",
                remedy=f"Use at most {self._longest:,}.",
            )
        layers = Counter(zip(config.blocks, _matrices(config), strict=True))
        total = self._model.at(config.hidden_size) + self._vocabulary_seconds(config)
        for (block, matrices), count in layers.items():
            total += count * self._layer_seconds(config, block, matrices, context)
        return total

    def _layer_seconds(
        self,
        config: ModelConfig,
        block: LayerConfig,
        matrices: tuple[tuple[int, int], ...],
        context: int,
    ) -> float:
        if block.is_removed:
            return 0.0
        total = self._layer.at(config.hidden_size) * (2 - len(block.without)) / 2
        total += sum(self._product.at(*matrix) for matrix in matrices)
        if "attention" not in block.without and block.kv_heads:
            seen = context if block.window is None else min(context, block.window)
            keys = block.kv_heads * config.head_dim
            total += self._context.at(seen, keys, block.query_heads_per_kv_head)
        if "ffn" not in block.without:
            total += sum(self._activation.at(width) for width in block.ffn_widths)
        return total

    def _vocabulary_seconds(self, config: ModelConfig) -> float:
        """The head's product, in pieces where it is wider than all that was measured."""
        piece = self._head_piece(config.embedding_size)
        whole, rest = divmod(config.vocab_size, piece)
        total = whole * self._head.at(config.embedding_size, piece) if whole else 0.0
        if rest:
            total += self._head.at(config.embedding_size, rest)
        if config.embedding_size != config.hidden_size:  # Two matrices project between them.
            total += self._product.at(config.embedding_size, config.hidden_size)
            total += self._head.at(config.hidden_size, config.embedding_size)
        return total

    def _head_piece(self, inputs: int) -> int:
        """The most outputs that were measured at so many inputs; the widest if none were."""
        column = bisect_right(self._head.axes[0], inputs - 1)
        if column == len(self._head.axes[0]):
            return self._widest
        known = ~np.isnan(self._head.seconds[column])
        return self._head.axes[1][int(np.flatnonzero(known)[-1])] if known.any() else self._widest


def _matrices(config: ModelConfig) -> list[tuple[tuple[int, int], ...]]:
    """(inputs, outputs) of each layer's matrices."""
    found = []
    for layer in range(config.layers):
        matrices = []
        for shape in layer_tensors(config, layer).values():
            if len(shape) == 2:
                first, second = shape
                matrices.append((first, second) if config.transposed else (second, first))
        found.append(tuple(matrices))
    return found


def check_parts(config: ModelConfig) -> None:
    """Check that a model consists of parts of which tables have times.

    Raises:
        InvalidSpec: it does not.
    """
    remedy = "Use another target, or a sparsity, and evaluation.speed to measure what it gives."
    if config.generic is not None:
        raise InvalidSpec(
            f"architecture '{config.family}' runs in transformers' own modules, and no table says "
            "what their parts take",
            field="pruning.target.speedup",
            remedy=remedy,
        )
    if any(block.names.router is not None for block in config.blocks):
        raise InvalidSpec(
            "the model has experts, and what their choice takes is in no table",
            field="pruning.target.speedup",
            remedy=remedy,
        )


@lru_cache(maxsize=64)
def pass_model(table: DeviceTable, of: str, sequences: int) -> PassModel:
    """Times of a kind of pass.

    Args:
        table: The device.
        of: "decode" or "prefill".
        sequences: Sequences at once.

    Raises:
        InvalidSpec: the table has no such pass.
    """
    heads = {times.sequences: times for times in table.decode}
    passes = heads if of == "decode" else {times.sequences: times for times in table.prefill}
    if sequences not in passes:
        known = ", ".join(str(each) for each in passes) or "none"
        raise InvalidSpec(
            f"the device's table has {of} of {known} sequences at once, not of {sequences:,}",
            field="pruning.target.batch_sequences",
            remedy="Use a number that the table has.",
        )
    return PassModel(table, passes[sequences], heads[sequences])
