"""A streamed forward pass over many tokens: activations in a scratch file, one layer in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.decoder import LayerTrace
from strucprune_core.models.generic.layer_tensors import ExpertwiseLayer
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import Hidden, ModelStream
from strucprune_core.models.structures import SiteKind
from strucprune_core.models.tensors import tensor_name
from strucprune_core.models.vocabulary import embed
from strucprune_core.scratch.arrays import temporary_array

Tick = Callable[[], None]
"""Called at safe points: it may raise `errors.Stopped`."""


def micro_batches(sequences: int, length: int, micro_batch_tokens: int) -> Iterator[slice]:
    """Slices of whole sequences, each of at most `micro_batch_tokens` tokens (at least one)."""
    step = max(1, micro_batch_tokens // length)
    for start in range(0, sequences, step):
        yield slice(start, min(start + step, sequences))


def run_batches(
    stream: ModelStream,
    layer: int,
    weights: LayerWeights,
    hidden: Hidden,
    scratch: Path,
    safe_point: Tick = lambda: None,
    *,
    record: Collection[SiteKind] = (),
) -> Iterator[tuple[slice, LayerTrace]]:
    """A layer on many tokens: (sequences, trace), a micro-batch at a time.

    Experts that are read one at a time are read once for all micro-batches where the layer's class
    allows that (`models.generic.gathered`), else for each.

    Args:
        stream: The model.
        layer: Which layer.
        weights: Its tensors.
        hidden: Its input, (sequences x length x d). Sequences that were yielded may be changed.
        scratch: Directory for temporary files.
        safe_point: Called while experts compute.
        record: As of `ModelStream.run_layer`.
    """
    sequences, length = hidden.shape[:2]
    batches = [*micro_batches(sequences, length, stream.tiles.micro_batch_tokens)]
    if isinstance(weights, ExpertwiseLayer) and len(batches) > 1:
        weights = _gathered(stream, layer, weights, hidden, scratch, safe_point)
    for rows in batches:
        yield rows, stream.run_layer(layer, weights, hidden[rows], record=record)


@torch.inference_mode()
def _gathered(
    stream: ModelStream,
    layer: int,
    weights: ExpertwiseLayer,
    hidden: Hidden,
    scratch: Path,
    safe_point: Tick,
) -> ExpertwiseLayer:
    """The layer with what its experts make of all tokens; itself where that cannot be had."""
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.models.generic.gathered import Room
    from strucprune_core.models.generic.routed import NoRecord

    assert stream.modules is not None  # noqa: S101 - only generic layers are read expert by expert
    sequences, length = hidden.shape[:2]
    tokens = stream.tiles.micro_batch_tokens
    batches = micro_batches(sequences, length, tokens)
    room = Room(
        scratch,
        sequences * length,
        max(tokens, length),
        stream.load,
        stream.transfers,
        safe_point,
    )
    prefix = tensor_name(stream.config, layer, "")
    loaded = (stream.load(hidden[rows]) for rows in batches)
    try:
        return stream.modules.gather(layer, weights, prefix, loaded, room, stream.dtype)
    except NoRecord:
        return weights


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
    hidden: NDArray[np.float32] = temporary_array(scratch, _shape(stream, tokens))
    _through(stream, tokens, hidden, scratch, tick)
    return hidden


def final_states(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    scratch: Path,
    tick: Tick,
) -> Hidden:
    """The same, on the device if the tiles have room for so many tokens."""
    hidden = stream.states(_shape(stream, tokens), scratch)
    _through(stream, tokens, hidden, scratch, tick)
    return hidden


def _shape(stream: ModelStream, tokens: NDArray[np.int32]) -> tuple[int, ...]:
    return (*tokens.shape, stream.config.hidden_size)


def _through(
    stream: ModelStream, tokens: NDArray[np.int32], hidden: Hidden, scratch: Path, tick: Tick
) -> None:
    """Fill in the output of the last layer."""
    embed(stream, tokens, hidden)
    for layer, weights in stream.layers(range(stream.config.layers)):
        for batch, trace in run_batches(stream, layer, weights, hidden, scratch):
            stream.put(hidden, batch, trace.hidden)
            del trace  # Not beside the next micro-batch's.
        del weights
        tick()
