"""Removing columns from a layer's quadratic problem, with lazy updates of its matrices.

A problem is P = H^-1 and M = W^T W, both (m x m). Removing the columns S and solving the rest again
(Optimal Brain Surgeon; Hassibi and Stork 1993) gives

    P <- P - P_:S P_SS^-1 P_S:        W <- W - W_S P_SS^-1 P_S:

at a cost of tr(W_S P_SS^-1 W_S^T). Let P_SS = R R^T and

    L = R^-1 P_S:       C = R^-1 M_S:       V^T V = C_:S R^-T       D = C - 1/2 V^T V L

(V = W_S R^-T itself is not needed). Then

    P <- P - L^T L      M <- M - L^T D - D^T L      cost tr(V^T V)

So M changes as P does, W is never touched again, and a removal needs only the rows S of both
matrices. We keep M instead of W because costs need nothing else, and rows S of M suffice.

Updates are lazy, the idea of GPTQ's batched updates (Frantar et al. 2022), which SparseGPT uses
too. L and D (rows x m) are kept for a superblock of removals. They correct the rows S when these
are read, the block diagonals at once, and the matrices when the superblock is full. Many updates of
low rank, limited by memory bandwidth, become few of a high rank. Matrices on a disk pass the device
once per superblock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer.groups import columns_of
from strucprune_core.method.linalg.factorisation import REMEDY
from strucprune_core.method.linalg.matrices import Matrix, Room, carve, spans
from strucprune_core.method.linalg.panels import BLOCK_CHANNELS


@dataclass(slots=True)
class Problem:
    """What is left of a layer's problem.

    Attributes:
        inverse: P, both halves; its first m rows and columns are in use. Overwritten.
        weight_gram: M, likewise.
        groups: Indices of the groups of columns that are left, in the matrices' order, (g,) int64.
        size: Columns of a group; m = g * size.
    """

    inverse: Matrix
    weight_gram: Matrix
    groups: Tensor
    size: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Which groups are removed next.

    Attributes:
        cost: From the diagonal blocks of P and M, (g x size x size) each, a cost per group, (g,).
        choose: From the costs (infinite for removed groups), the groups' indices, and the most that
            may be removed: positions of those to remove now, (t,) int64.
        most: Groups that are removed at a time, at most.
    """

    cost: Callable[[Tensor, Tensor], Tensor]
    choose: Callable[[Tensor, Tensor, int], Tensor]
    most: int


After = Callable[[Problem, float], None]


def eliminate(
    problem: Problem, policy: Policy, room: Room, after: After | None = None
) -> tuple[Tensor, Tensor]:
    """Remove all groups: their indices in order, (g,), and what each cost, (g,).

    Groups that are removed together share their cost evenly.

    Args:
        problem: The problem; its matrices are overwritten.
        policy: Which groups go next.
        room: Where to compute, and sizes of panels.
        after: Called after each superblock with the problem and the sum of the costs so far.

    Raises:
        NumericalFailure: rounding has left a block of P that is not positive definite.
    """
    order: list[Tensor] = []
    costs: list[Tensor] = []
    while len(problem.groups):
        superblock = _Superblock(problem, policy, room)
        while superblock.has_room:
            chosen, cost = superblock.remove()
            order.append(problem.groups[chosen])
            costs.append((cost / len(chosen)).expand(len(chosen)))
            room.tick()
        superblock.apply()
        del superblock  # Frees its memory before the next one is made.
        if after is not None:
            after(problem, float(torch.cat(costs).sum(dtype=torch.float64)))
    return torch.cat(order), torch.cat(costs)


class _Superblock:
    """Removals that are not applied to the problem's matrices yet."""

    def __init__(self, problem: Problem, policy: Policy, room: Room) -> None:
        self._problem, self._policy, self._room = problem, policy, room
        groups, size = len(problem.groups), problem.size
        self._left, m = groups, groups * size
        capacity = room.panels.capacity(m, min(policy.most, groups) * size)
        self._factor = carve(room.flat(capacity * m), capacity, m)  # L
        self._change = carve(room.flat(capacity * m), capacity, m)  # D
        self._rank = 0
        self._inverse_blocks = _diagonal_blocks(problem.inverse, groups, size, room)
        self._weight_blocks = _diagonal_blocks(problem.weight_gram, groups, size, room)
        self._removed = torch.zeros(groups, dtype=torch.bool, device=room.device)
        self._failures: list[Tensor] = []

    @property
    def has_room(self) -> bool:
        """Whether there is a group left, and space for the next removal."""
        needed = self._most * self._problem.size
        return 0 < needed <= len(self._factor) - self._rank

    @property
    def _most(self) -> int:
        return min(self._policy.most, self._left)

    def remove(self) -> tuple[Tensor, Tensor]:
        """Remove the next groups: their positions, and what they cost together."""
        problem, policy, size = self._problem, self._policy, self._problem.size
        costs = policy.cost(self._inverse_blocks, self._weight_blocks)
        costs.masked_fill_(self._removed, torch.inf)
        chosen = policy.choose(costs, problem.groups, self._most)
        columns = columns_of(chosen, size)
        before, after = self._rank, self._rank + len(columns)
        whole = slice(0, self._factor.shape[1])
        factor, change = self._factor[before:after], self._change[before:after]
        problem.inverse.gather(columns, whole, factor)
        problem.weight_gram.gather(columns, whole, change)
        old_factor, old_change = self._factor[:before], self._change[:before]
        factor_here, change_here = old_factor[:, columns].T, old_change[:, columns].T
        factor.addmm_(factor_here, old_factor, alpha=-1)
        change.addmm_(factor_here, old_change, alpha=-1)
        change.addmm_(change_here, old_factor, alpha=-1)
        root, info = torch.linalg.cholesky_ex(factor[:, columns])
        self._failures.append(info)
        torch.linalg.solve_triangular(root, factor, upper=False, out=factor)
        torch.linalg.solve_triangular(root, change, upper=False, out=change)
        cost = torch.linalg.solve_triangular(root, change[:, columns].T, upper=False)
        change.addmm_(cost, factor, alpha=-0.5)
        self._inverse_blocks.sub_(_diagonal_products(factor, factor, size))
        crossed = _diagonal_products(factor, change, size)
        self._weight_blocks.sub_(crossed).sub_(crossed.mT)
        self._removed[chosen] = True
        self._left -= len(chosen)
        self._rank = after
        return chosen, cost.diagonal().sum()

    def apply(self) -> None:
        """Apply the removals to the matrices, and move the remaining columns to their beginning."""
        problem, room = self._problem, self._room
        # Checked once, not at each removal: every check makes an accelerator wait.
        if bool(torch.stack(self._failures).any()):
            raise NumericalFailure(
                "the inverse of the Gram matrix lost its accuracy", remedy=REMEDY
            )
        left = (~self._removed).nonzero().flatten()
        problem.groups = problem.groups[left]
        keep = columns_of(left, problem.size)
        if not len(keep):
            return
        factor = _compacted(self._factor[: self._rank], keep)
        change = _compacted(self._change[: self._rank], keep)
        step = room.panels.step(len(keep))
        rows = room.flat(step * len(keep))
        for span in spans(len(keep), step):
            # In ascending order a panel is written over rows that have been read already.
            here, below = keep[span], keep[: span.stop]
            panel = carve(rows, len(here), len(below))
            problem.inverse.gather(here, below, panel)
            panel.addmm_(factor[:, span].T, factor[:, : span.stop], alpha=-1)
            problem.inverse.write_symmetric(span, panel)
            problem.weight_gram.gather(here, below, panel)
            panel.addmm_(factor[:, span].T, change[:, : span.stop], alpha=-1)
            panel.addmm_(change[:, span].T, factor[:, : span.stop], alpha=-1)
            problem.weight_gram.write_symmetric(span, panel)
            room.tick()


def _diagonal_blocks(matrix: Matrix, groups: int, size: int, room: Room) -> Tensor:
    """Blocks of the first groups, (g x size x size)."""
    if size == 1:
        return matrix.diagonal()[:groups, None, None]
    blocks = room.flat(groups * size * size).view(groups, size, size)
    for group, span in enumerate(spans(groups * size, size)):
        matrix.gather(span, span, blocks[group])
    return blocks


def _diagonal_products(left: Tensor, right: Tensor, size: int) -> Tensor:
    """Diagonal blocks of left^T right, (g x size x size), from (q x m) each."""
    if size == 1:
        return (left * right).sum(0)[:, None, None]
    rows = len(left)
    return left.view(rows, -1, size).permute(1, 2, 0) @ right.view(rows, -1, size).transpose(0, 1)


def _compacted(rows: Tensor, keep: Tensor) -> Tensor:
    """The columns `keep` (ascending) of (q x m), moved to its beginning."""
    result = rows[:, : len(keep)]
    for span in spans(len(rows), BLOCK_CHANNELS):  # A few rows at a time: no copy of the whole.
        result[span] = rows[span].index_select(1, keep)
    return result
