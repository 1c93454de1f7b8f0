"""Columns that stay or go together: FFN channels (one column) or attention heads (several).

A group is `size` consecutive columns; m = f / size of them. Group indices are (k,) int64. This is
the projection of StructPrune's ADMM onto structured masks: keep the k groups of largest norm, set
the others to zero (Boyd et al. 2011, section 9.1, for single entries). `SaliencyMetric` changes the
norm, so that it equals the saliency of Optimal Brain Surgeon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def columns_of(groups: Tensor, size: int) -> Tensor:
    """The columns of groups, in the groups' order, (k * size,) int64."""
    offsets = torch.arange(size, device=groups.device)
    return (groups[:, None] * size + offsets).flatten()


def restricted(matrix: Tensor, groups: Tensor, size: int) -> Tensor:
    """A copy of (d x f) with zeros outside the groups."""
    columns = columns_of(groups, size)
    result = torch.zeros_like(matrix)
    result[:, columns] = matrix[:, columns]
    return result


def largest_groups(matrix: Tensor, keep: int, size: int, lockstep: int = 1) -> Tensor:
    """The `keep` groups of columns with the largest norm, (keep,) int64, ascending.

    Of groups with equal norms, the first is kept.

    Args:
        matrix: (d x f), of groups of `size` columns.
        keep: Groups to keep, a multiple of `lockstep`.
        size: Columns of a group; f is a multiple.
        lockstep: Families of consecutive groups that keep equally many; 1: any groups.
    """
    energies = matrix.square().sum(0).view(lockstep, -1, size).sum(2)
    # A stable sort: `topk` breaks ties differently from device to device.
    order = torch.sort(energies, dim=1, descending=True, stable=True).indices
    first = torch.arange(lockstep, device=matrix.device)[:, None] * energies.shape[1]
    return (order[:, : keep // lockstep] + first).flatten().sort().values


@dataclass(frozen=True, slots=True)
class SaliencyMetric:
    """Coordinates in which a group's squared norm is its OBS saliency.

    ||W_S C_S||^2 = tr(W_S ([H^-1]_SS)^-1 W_S^T)   with   C_S C_S^T = ([H^-1]_SS)^-1

    Attributes:
        factors: C, lower triangles, (m, size, size) float64.
    """

    factors: Tensor

    @classmethod
    def of(cls, lower: Tensor, size: int) -> SaliencyMetric:
        """From the Cholesky factor of H, (f x f)."""
        inverse = torch.cholesky_inverse(lower)
        m = len(inverse) // size
        blocks = inverse.view(m, size, m, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        # They are positive definite: Cholesky, not LU, which was seen to fail on such a batch.
        inverted = torch.cholesky_inverse(torch.linalg.cholesky(blocks))
        return cls(torch.linalg.cholesky(inverted))

    def scale(self, matrix: Tensor) -> Tensor:
        """W C, (d x f)."""
        m, size, _ = self.factors.shape
        return torch.einsum("dms,mst->dmt", matrix.view(-1, m, size), self.factors).flatten(1)

    def transform(self, hessian: Tensor) -> Tensor:
        """C^-1 H C^-T: the H of the coordinates W C, (f x f)."""
        return self._unscaled_rows(self._unscaled_rows(hessian).T.contiguous())

    def _unscaled_rows(self, matrix: Tensor) -> Tensor:
        m, size, _ = self.factors.shape
        rows = matrix.view(m, size, -1)
        solved: Tensor = torch.linalg.solve_triangular(self.factors, rows, upper=False)
        return solved.flatten(0, 1)
