"""Removing columns from a layer's quadratic problem, with lazy updates of its matrices.

A problem is P = H^-1 and M = W^T W, both (m x m). Removing the columns S and solving the rest again
(Optimal Brain Surgeon; Hassibi & Stork 1993) gives

    P <- P - P_:S P_SS^-1 P_S:        W <- W - W_S P_SS^-1 P_S:

at a cost of tr(W_S P_SS^-1 W_S^T). With P_SS = R R^T, L = R^-1 P_S:, C = R^-1 M_S: and
V^T V = C_:S R^-T (V = W_S R^-T is not needed itself) that is

    P <- P - L^T L        M <- M - L^T D - D^T L,   D = C - 1/2 V^T V L        cost tr(V^T V)

so M changes as P does, W is never touched again, and all that a removal needs of both matrices are
the rows S. L and D (rows x m) are kept for a superblock of removals: rows S are corrected by them
when they are read, block diagonals at once, and the matrices when the superblock is full. That
turns many updates of low rank, which are bound by memory, into few of a high one; and where the
matrices lie on a disk, they pass the device once per superblock.
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
        inverse: P float64, both halves; what is left are its first m rows and columns. Overwritten.
        energy: M, likewise.
        groups: Names of the groups of columns that are left, in the matrices' order, (g,) int64.
        size: Columns of a group; m = g * size.
    """

    inverse: Matrix
    energy: Matrix
    groups: Tensor
    size: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Who goes next.

    Attributes:
        cost: From the diagonal blocks of P and M, (g x size x size) each, a cost per group, (g,).
        choose: From the costs, infinite where removed already, the groups' names, and how many may
            go: positions of those that go now, (t,) int64.
        most: Groups that go at a time at most.
    """

    cost: Callable[[Tensor, Tensor], Tensor]
    choose: Callable[[Tensor, Tensor, int], Tensor]
    most: int


def eliminate(problem: Problem, policy: Policy, room: Room) -> tuple[Tensor, Tensor]:
    """Remove all groups: their names in order, (g,), and what each cost, (g,) float64.

    Groups that go together share their cost evenly.

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
        del superblock  # Before there is another.
    return torch.cat(order), torch.cat(costs)


class _Superblock:
    """Removals that the problem's matrices do not know of yet."""

    def __init__(self, problem: Problem, policy: Policy, room: Room) -> None:
        self._problem, self._policy, self._room = problem, policy, room
        groups, size = len(problem.groups), problem.size
        self._left, m = groups, groups * size
        capacity = room.panels.capacity(m, min(policy.most, groups) * size)
        self._factor = carve(room.flat(capacity * m), capacity, m)  # L
        self._change = carve(room.flat(capacity * m), capacity, m)  # D
        self._rank = 0
        self._inverse_blocks = _diagonal_blocks(problem.inverse, groups, size, room)
        self._energy_blocks = _diagonal_blocks(problem.energy, groups, size, room)
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
        """Remove the next groups: their positions and what they cost together."""
        problem, policy, size = self._problem, self._policy, self._problem.size
        costs = policy.cost(self._inverse_blocks, self._energy_blocks)
        costs.masked_fill_(self._removed, torch.inf)
        chosen = policy.choose(costs, problem.groups, self._most)
        columns = columns_of(chosen, size)
        before, after = self._rank, self._rank + len(columns)
        whole = slice(0, self._factor.shape[1])
        factor, change = self._factor[before:after], self._change[before:after]
        problem.inverse.gather(columns, whole, factor)
        problem.energy.gather(columns, whole, change)
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
        self._energy_blocks.sub_(crossed).sub_(crossed.mT)
        self._removed[chosen] = True
        self._left -= len(chosen)
        self._rank = after
        return chosen, cost.diagonal().sum()

    def apply(self) -> None:
        """Bring the matrices up to date and move what is left to their beginning."""
        problem, room = self._problem, self._room
        # Asked once, not at each removal: that would make an accelerator wait.
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
            problem.energy.gather(here, below, panel)
            panel.addmm_(factor[:, span].T, change[:, : span.stop], alpha=-1)
            panel.addmm_(change[:, span].T, factor[:, : span.stop], alpha=-1)
            problem.energy.write_symmetric(span, panel)
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
