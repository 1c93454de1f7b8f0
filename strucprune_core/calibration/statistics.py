"""The statistics of a site: a token-weighted Gram matrix, accumulated in float32.

    w_t = 1 / mean(x_out,t^2)        G = sum_t w_t a_t a_t^T / sum_t w_t

The weights make layers comparable: a few tokens carry activations tens of thousands of times the
median (Sun et al. 2024, "Massive Activations"), and a raw Gram matrix is theirs alone. An expert's
sum runs over its tokens only, but is divided by the weight of all: what it adds to the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_MEAN_SQUARE = 1e-12  # A token whose output is zero gets a finite weight.


def token_weights(outputs: Tensor) -> Tensor:
    """w_t of each token, (n,), from the layer's outputs on the residual stream, (n x d)."""
    return 1.0 / outputs.float().square().mean(-1).clamp_min(LEAST_MEAN_SQUARE)


class GramAccumulator:
    """Sums w_t a_t a_t^T over batches, on the activations' device."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)

    def add(self, activations: Tensor, weights: Tensor) -> None:
        """Add tokens: their activations (n x f) and weights w_t (n,)."""
        scaled = activations.float() * weights.sqrt()[:, None]
        self._sum.addmm_(scaled.T, scaled)

    def gram(self, total_weight: float) -> Tensor:
        """G, (f x f) float32. Ends the accumulation: it is the accumulator's own memory."""
        return self._sum.div_(total_weight)
