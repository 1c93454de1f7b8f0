"""A streamed forward pass over many tokens: activations in a scratch file, one layer in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed
from strucprune_core.scratch.arrays import temporary_array

Tick = Callable[[], None]
"""Called at safe points: it may raise `errors.Stopped`."""


def micro_batches(sequences: int, length: int, micro_batch_tokens: int) -> Iterator[slice]:
    """Slices of whole sequences, each of at most `micro_batch_tokens` tokens (at least one)."""
    step = max(1, micro_batch_tokens // length)
    for start in range(0, sequences, step):
        yield slice(start, min(start + step, sequences))


def final_hidden(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    scratch: Path,
    tick: Tick,
) -> NDArray[np.float32]:
    """Output of the last decoder layer for token ids (sequences x length), before the final norm.

    Returns:
        (sequences x length x d), in a scratch file.
    """
    sequences, length = tokens.shape
    shape = (sequences, length, stream.config.hidden_size)
    hidden = temporary_array(scratch, shape)
    embed(stream, tokens, hidden)
    for layer in range(stream.config.layers):
        weights = stream.layer(layer)
        for batch in micro_batches(sequences, length, stream.tiles.micro_batch_tokens):
            hidden[batch] = stream.run_layer(layer, weights, hidden[batch]).hidden.cpu().numpy()
        tick()
    return hidden
