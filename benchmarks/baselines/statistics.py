"""Statistics of the consumers' inputs, gathered by running a model one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strucprune_core.method.gram import token_weights

_BATCH_TOKENS = 4096  # What prune() pushes through a layer at a time by default.


class Observer(Protocol):
    """Adds up what it is shown."""

    def add(self, inputs: Tensor, weights: Tensor) -> None:
        """Add tokens: the consumer's inputs (n x m) and the tokens' weights (n,)."""


class Moments:
    """Mean and variance of each input, and its mean square; the tokens' weights are ignored."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)
        self._tokens = 0

    def add(self, inputs: Tensor, weights: Tensor) -> None:
        """Add tokens."""
        self._sum += inputs.sum(0, dtype=torch.float64)
        self._squares += inputs.double().square().sum(0)
        self._tokens += len(inputs)

    def tensors(self) -> dict[str, Tensor]:
        """`mean`, `variance` (unbiased) and `sum_squares` = ||X_j||^2, each (m,) float64."""
        mean = self._sum / self._tokens
        deviations = (self._squares - self._tokens * mean.square()).clamp_min(0.0)
        return {
            "mean": mean,
            "variance": deviations / (self._tokens - 1),
            "sum_squares": self._squares,
        }


class Gram:
    """Token-weighted Gram matrix, as StrucPrune's own: sum_t w_t a_t a_t^T / sum_t w_t."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._squares = torch.zeros(width, dtype=torch.float64)
        self._weight = 0.0

    def add(self, inputs: Tensor, weights: Tensor) -> None:
        """Add tokens."""
        scaled = inputs * weights.sqrt()[:, None]
        self._sum.addmm_(scaled.T, scaled)
        self._squares += inputs.double().square().sum(0)
        self._weight += float(weights.sum(dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """`gram` (m x m) float32, and the unweighted `sum_squares` (m,) float64."""
        return {"gram": self._sum / self._weight, "sum_squares": self._squares}


@torch.no_grad()
def embedded(model: Any, windows: NDArray[np.int32]) -> Tensor:
    """Input of the first layer, (samples x length x d)."""
    hidden: Tensor = model.model.embed_tokens(torch.from_numpy(windows).long())
    return hidden


@torch.no_grad()
def run_layer(
    model: Any, layer: int, hidden: Tensor, observers: Mapping[nn.Linear, Observer]
) -> Tensor:
    """Run a decoder layer over all windows.

    Args:
        model: A transformers Llama model.
        layer: Number of the layer.
        hidden: Its input, (samples x length x d).
        observers: Who is shown the inputs of which linear layer.

    Returns:
        The layer's output.
    """
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[module] = arguments[0]

    positions = torch.arange(hidden.shape[1])[None]
    rotations = model.model.rotary_emb(hidden, positions)
    decoder = model.model.layers[layer]
    outputs = torch.empty_like(hidden)
    handles = [linear.register_forward_pre_hook(see) for linear in observers]
    rows = max(1, _BATCH_TOKENS // hidden.shape[1])
    for start in range(0, len(hidden), rows):
        batch = slice(start, start + rows)
        result = decoder(hidden[batch], position_ids=positions, position_embeddings=rotations)
        outputs[batch] = result[0] if isinstance(result, tuple) else result
        weights = token_weights(outputs[batch].flatten(0, 1))
        for linear, observer in observers.items():
            observer.add(seen[linear].flatten(0, 1), weights)
    for handle in handles:
        handle.remove()
    return outputs
