"""Local search over supports: exchange kept groups for removed ones while the error falls.

On a support K with optimum W, exactly for one group at a time (S in K, T outside; H_TT|K is the
Schur complement H_TT - H_TK H_KK^-1 H_KT, D = (W0 - W) H the negative gradient):

    losing S costs    tr(W_S ([H_KK^-1]_SS)^-1 W_S^T)
    adding T gains    tr(D_T (H_TT|K)^-1 D_T^T)

OBS never takes a removal back: what it removed early was judged beside channels that were removed
later. Pairs (cheapest to lose, best to add) are exchanged many at a time, as many as pay by these
numbers; if the exact error does not fall, half as many, down to one. (Exchanges in this spirit:
Meng et al. 2024, "OSSCAR".)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.groups import columns_of


@dataclass(frozen=True, slots=True)
class SwapResult:
    """A support that the search ended on.

    Attributes:
        groups: (k,) int64, ascending.
        errors: Relative error after each accepted exchange, the start's first; falling.
        swapped: Groups exchanged in all.
        evaluations: Supports whose error was computed.
        local_optimum: Whether it ended because no exchange is left that pays; otherwise the
            evaluations were used up.
    """

    groups: Tensor
    errors: tuple[float, ...]
    swapped: int
    evaluations: int
    local_optimum: bool


def swap_groups(
    problem: LayerProblem, start: Tensor, group_size: int = 1, max_evaluations: int = 40
) -> SwapResult:
    """Improve a support.

    Args:
        problem: The layer.
        start: Kept groups, (k,) int64.
        group_size: Columns per group.
        max_evaluations: Supports to try at most; each costs about what one W-step of ADMM does.
    """
    groups = start.sort().values.to(problem.hessian.device)
    errors = [problem.error(columns_of(groups, group_size))]
    evaluations, swapped, at_once = 1, 0, len(groups)
    while evaluations < max_evaluations:
        outgoing, incoming = _paying_pairs(problem, groups, group_size)
        at_once = min(at_once, len(outgoing))
        while at_once and evaluations < max_evaluations:
            kept = groups[~torch.isin(groups, outgoing[:at_once])]
            trial = torch.cat([kept, incoming[:at_once]]).sort().values
            error = problem.error(columns_of(trial, group_size))
            evaluations += 1
            if error < errors[-1]:
                break
            at_once //= 2
        else:
            return SwapResult(groups, tuple(errors), swapped, evaluations, at_once == 0)
        groups, swapped = trial, swapped + at_once
        errors.append(error)
    return SwapResult(groups, tuple(errors), swapped, evaluations, False)


def _paying_pairs(problem: LayerProblem, groups: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Groups to lose and to add, best pair first, while the gain is above the cost."""
    everything = torch.arange(len(problem.hessian) // size, device=groups.device)
    gone = everything[~torch.isin(everything, groups)]
    if not len(groups) or not len(gone):
        return groups[:0], gone[:0]
    costs, gains = _costs_and_gains(problem, groups, gone, size)
    cheapest, best = costs.argsort(stable=True), gains.argsort(descending=True, stable=True)
    pairs = min(len(groups), len(gone))
    paying = int((gains[best][:pairs] > costs[cheapest][:pairs]).sum())
    return groups[cheapest[:paying]], gone[best[:paying]]


def _costs_and_gains(
    problem: LayerProblem, groups: Tensor, gone: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Of losing each kept group, (k,), and of adding each removed one, (m - k,)."""
    kept, out = columns_of(groups, size), columns_of(gone, size)
    lower = torch.linalg.cholesky(problem.hessian[kept][:, kept])
    weight = torch.cholesky_solve(problem.right_side[:, kept].T, lower).T
    inverse = torch.cholesky_inverse(lower)
    costs = _saliencies(weight, torch.linalg.inv(_blocks(inverse, size)))
    cross = problem.hessian[kept][:, out]
    half = torch.linalg.solve_triangular(lower, cross, upper=False)
    # H_TT|K, only its diagonal blocks: sums over rows of `half`.
    schur = _blocks(problem.hessian[out][:, out], size) - torch.einsum(
        "kms,kmt->mst", *[half.view(len(kept), len(gone), size)] * 2
    )
    descent = problem.right_side[:, out] - weight @ cross
    return costs, _saliencies(descent, torch.linalg.inv(schur))


def _saliencies(matrix: Tensor, blocks: Tensor) -> Tensor:
    """tr(X_S B_S X_S^T) of every group, (m,), from X (d x m size) and B (m, size, size)."""
    x = matrix.view(len(matrix), len(blocks), -1)
    return torch.einsum("dms,mst,dmt->m", x, blocks, x)


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """Diagonal blocks of (m size x m size), (m, size, size)."""
    m = len(matrix) // size
    return matrix.view(m, size, m, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
