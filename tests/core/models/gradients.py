"""The streamed backward pass through all layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strucprune_core.models.backward import LayerGradients, backward_layer
from strucprune_core.models.output_gradients import loss_gradients
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed

Rows = NDArray[np.float32]


def run_from(stream: ModelStream, layer: int, hidden: Rows) -> list[Rows]:
    """A layer's input and the outputs of all layers from there."""
    states = [hidden]
    for number in range(layer, stream.config.layers):
        states.append(stream.run_layer(number, stream.layer(number), states[-1]).hidden.numpy())
    return states


def all_states(stream: ModelStream, tokens: NDArray[np.int32]) -> list[Rows]:
    """Every layer's input, and the last one's output."""
    hidden = np.empty((*tokens.shape, stream.config.hidden_size), dtype=np.float32)
    embed(stream, tokens, hidden)
    return run_from(stream, 0, hidden)


def backward(stream: ModelStream, tokens: NDArray[np.int32]) -> list[LayerGradients]:
    """The backward passes of all layers, by layer."""
    states = all_states(stream, tokens)
    d = stream.config.hidden_size
    flow = np.zeros_like(states[-1])
    flow[:, :-1] = loss_gradients(
        stream, states[-1][:, :-1].reshape(-1, d), tokens[:, 1:].reshape(-1)
    ).reshape(len(tokens), -1, d)
    found: list[LayerGradients] = []
    for layer in reversed(range(stream.config.layers)):
        found.append(backward_layer(stream, layer, stream.whole_layer(layer), states[layer], flow))
        flow = found[-1].at_input.numpy()
    return found[::-1]
