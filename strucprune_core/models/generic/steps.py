"""Which way a model in transformers' modules takes one token after another.

With a cache (`continuing`) a token costs a pass of that token alone. Some classes keep what they
remember elsewhere, or nowhere. That is found by trying: a few tokens of two groups of sequences, in
turns, against the same tokens at once. If the outputs differ, every token costs a pass over all
tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.forward import Tick, final_hidden
from strucprune_core.models.generic.continuing import Continuation
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import rows_of_tokens

Tokens = NDArray[np.int32]
Rows = NDArray[np.float32]
Step = Callable[[Tokens, Tick], Rows]
"""The last layer's output for the last of the tokens, (sequences x d), from all of them so far."""

_TRIED_TOKENS = 4
# Largest difference that rounding explains, relative to the largest value.
_TOLERANCE = 1e-4


def step_of(
    stream: ModelStream,
    sequences: int,
    length: int,
    scratch: Path,
    group_of: Callable[[int], int],
    alive: Tick,
) -> Step:
    """The way to take one token after another.

    Args:
        stream: A generic model.
        sequences: How many there are.
        length: Most tokens of a sequence.
        scratch: Directory for what layers remember.
        group_of: Sequences that pass a layer together, by the bytes that it remembers of each.
        alive: Called at safe points while it is tried.
    """
    tried = min(_TRIED_TOKENS, length)
    size = _remembered_bytes(stream, tried, scratch, alive)
    if size is None:
        return lambda tokens, tick: np.asarray(final_hidden(stream, tokens, scratch, tick)[:, -1])
    group = group_of(size * length // tried)
    return _CachedStep(stream, sequences, group, length, scratch)


class _CachedStep:
    """Takes the last token of every sequence, group by group, one layer resident."""

    def __init__(
        self, stream: ModelStream, sequences: int, group: int, length: int, scratch: Path
    ) -> None:
        self._stream = stream
        self._groups = [
            (slice(start, start + group), Continuation(stream, length, scratch))
            for start in range(0, sequences, group)
        ]

    def __call__(self, tokens: Tokens, tick: Tick) -> Rows:
        config = self._stream.config
        rows = rows_of_tokens(self._stream, tokens[:, -1]).to(self._stream.device)
        ids = torch.from_numpy(tokens[:, -1].astype(np.int64)).to(self._stream.device)
        hidden = np.empty((len(tokens), config.hidden_size), dtype=np.float32)
        for part, group in self._groups:
            self._stream.put(hidden, part, group.embed(rows[part], ids[part])[:, 0])
        for layer, weights in self._stream.layers(range(config.layers)):
            for part, group in self._groups:
                x = self._stream.load(hidden[part, None])
                self._stream.put(hidden, part, group.run_layer(layer, weights, x)[:, 0])
            del weights
            tick()
        return hidden

    def remembered_bytes(self) -> int:
        """Most bytes that a layer remembers of a group so far."""
        return max(group.remembered_bytes() for _, group in self._groups)


def _remembered_bytes(stream: ModelStream, count: int, scratch: Path, alive: Tick) -> int | None:
    """Bytes that a layer remembers of so many tokens; None if a cache does not do.

    Groups of one sequence take turns, so states that a class keeps in its modules are mixed up.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    tokens = generator.integers(0, stream.config.vocab_size, (2, count), dtype=np.int32)
    wanted = final_hidden(stream, tokens, scratch, alive)
    try:
        step = _CachedStep(stream, len(tokens), 1, count, scratch)
        found = [step(tokens[:, : position + 1], alive) for position in range(count)]
    except torch.OutOfMemoryError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # Whatever a class makes of a cache that it does not know.
        return None
    difference = np.abs(np.stack(found, axis=1) - wanted).max()
    return step.remembered_bytes() if difference <= _TOLERANCE * np.abs(wanted).max() else None
