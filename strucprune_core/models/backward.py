"""The backward pass of a streamed model, a layer at a time.

Only every layer's input is kept of a forward pass (the activation checkpoints of Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost"). A layer is run again from its input with the graph
on, which turns the gradient at its output into that at its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import SiteKind


@dataclass(frozen=True, slots=True)
class LayerGradients:
    """Gradients of one layer's backward pass.

    Attributes:
        at_input: At its input, (b, n, d).
        at_outputs: At the outputs of its sites, with the sites' kind, (b, n, width of the output):
            the sites of a kind have one joint output, except FFNs of a generic layer, which have
            one each.
    """

    at_input: Tensor
    at_outputs: list[tuple[SiteKind, Tensor]]


def backward_layer(
    stream: ModelStream,
    layer: int,
    weights: LayerWeights,
    hidden: NDArray[np.float32],
    at_output: NDArray[np.float32],
) -> LayerGradients:
    """Run one dense layer forward and back; no weight gets a gradient.

    Args:
        stream: The model.
        layer: Which.
        weights: Its tensors, by role.
        hidden: Its input, (b x n x d).
        at_output: Gradient of the loss at its output, (b x n x d).
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = stream.load(hidden).requires_grad_()
        result, outputs = stream.forward_with_outputs(layer, x, weights)
        at_input, *at_outputs = torch.autograd.grad(
            result,
            (x, *(output for _, output in outputs)),
            stream.load(at_output),
        )
    kinds = (kind for kind, _ in outputs)
    shape = (*hidden.shape[:2], -1)
    return LayerGradients(
        at_input, [(k, g.float().reshape(shape)) for k, g in zip(kinds, at_outputs, strict=True)]
    )


def layer_gradients(
    stream: ModelStream,
    layer: int,
    weights: LayerWeights,
    trained: Sequence[str],
    hidden: Tensor,
    at_output: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one layer forward and back, with gradients at its weights.

    Args:
        stream: The model.
        layer: Which.
        weights: Its tensors, by role.
        trained: Roles that get a gradient.
        hidden: Its input, (b, n, d).
        at_output: Gradient of the loss at its output, (b, n, d).

    Returns:
        The gradient at its input, and at each trained tensor by role.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = hidden.detach().requires_grad_()
        leaves = {role: weights[role].detach().requires_grad_() for role in trained}
        result = stream.forward_layer(layer, x, {**weights, **leaves}).hidden
        # An expert that no token chose is not part of the graph: its gradient is zero.
        at_input, *gradients = torch.autograd.grad(
            result, (x, *leaves.values()), at_output, materialize_grads=True
        )
    return at_input, dict(zip(trained, gradients, strict=True))
