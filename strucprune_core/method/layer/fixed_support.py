"""The exact optimum on a given support: what any choice of channels is worth.

    min over W with zeros outside K   tr((W - W0) H (W - W0)^T),     H = G + g I
    W_K = B_K H_KK^-1,   value  tr(W0 B^T) - tr(B_K H_KK^-1 B_K^T),  B = W0 H

These are the normal equations of least squares with columns fixed at zero, solved by Cholesky.
`admm` prices every support by them. W_K is the solution of `ridge` with the same damping. The value
differs from the objective of `ridge` by g times the squared norm of the dense weights outside K: as
in Optimal Brain Surgeon, removing them is charged too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.method.linalg.factorisation import check_finite, factorise


@dataclass(frozen=True, slots=True)
class LayerProblem:
    """A layer's quadratic problem, prepared for many supports.

    Attributes:
        hessian: H, (f x f) float64.
        lower: Its Cholesky factor, (f x f).
        dense: W0, (d x f) float64.
        right_side: B = W0 H, (d x f).
        energy: tr(W0 H W0^T): the error of removing everything.
    """

    hessian: Tensor
    lower: Tensor
    dense: Tensor
    right_side: Tensor
    energy: float

    @classmethod
    def of(cls, gram: Tensor, weight: Tensor, damping: float) -> LayerProblem:
        """From G (f x f) and W0 (d x f), any float dtype.

        Raises:
            NumericalFailure: G is not finite or cannot be factorised.
        """
        check_finite(gram.diagonal())
        hessian, dense = gram.to(torch.float64, copy=True), weight.double()
        # A layer that no token reaches: every support repairs it, and any ridge serves.
        mean_energy = float(hessian.diagonal().mean()) or 1.0
        factor = factorise(hessian, damping * mean_energy)
        hessian.diagonal().add_(factor.ridge)
        right_side = dense @ hessian
        return cls(hessian, factor.lower, dense, right_side, float((dense * right_side).sum()))

    def error(self, kept: Tensor) -> float:
        """The optimum's value on columns K, (k,), relative to removing everything."""
        lower = torch.linalg.cholesky(self.hessian[kept][:, kept])
        half = torch.linalg.solve_triangular(lower, self.right_side[:, kept].T, upper=False)
        return 1.0 - float(half.square().sum()) / self.energy if self.energy > 0.0 else 0.0

    def solution(self, kept: Tensor) -> Tensor:
        """The optimum on columns K, with zeros elsewhere, (d x f)."""
        lower = torch.linalg.cholesky(self.hessian[kept][:, kept])
        result = torch.zeros_like(self.dense)
        result[:, kept] = torch.cholesky_solve(self.right_side[:, kept].T, lower).T
        return result
