"""The repair of an expert's down matrix by what a layer without some experts lacks.

Let h_t be an expert's activations for token t, times the router's weight, and r_t what the experts
of the dense layer put out and those of the pruned one do not. A change C of the down matrix (d x f)
removes as much of that as it can:

    minimise over C   sum_t ||r_t - C h_t||^2 + g ||C||^2,      g = damping * mean(diag H)
    C^T = (H + g I)^-1 sum_t h_t r_t^T,                         H = sum_t h_t h_t^T

It is ridge regression on the distance from the dense weights, as in `method.layer.ridge`, with
another target. Experts are changed one after the other, each for what those before it have left
(block coordinate descent, one sweep): together they would need the products of all pairs of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.linalg.factorisation import factorise


class ResidualSums:
    """Sums over the tokens of one expert.

    Args:
        columns: f.
        outputs: d.
        device: Where they are summed, in float64.
    """

    def __init__(self, columns: int, outputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._cross = torch.zeros(columns, outputs, dtype=torch.float64, device=device)

    def add(self, activations: Tensor, residual: Tensor) -> None:
        """Add tokens: h (n x f) and r (n x d)."""
        inputs = activations.double()
        self.tokens += len(inputs)
        self._gram.addmm_(inputs.T, inputs)
        self._cross.addmm_(inputs.T, residual.double())

    def correction(self, damping: float) -> Tensor:
        """C^T, (f x d) float64; zero where the expert puts out nothing.

        Args:
            damping: Ridge relative to mean(diag H), > 0.

        Raises:
            NumericalFailure: the sums are not finite.
        """
        energy = float(self._gram.diagonal().mean())
        if energy == 0.0:
            return torch.zeros_like(self._cross)
        return torch.cholesky_solve(self._cross, factorise(self._gram, damping * energy).lower)
