"""Checks of a damage curve in float32, after every eighth of the removals.

Two identities hold for the columns K that are left, with H = G + eps I and what was removed so far:

    H_KK P = I                  since P is the inverse of H_KK: tried on random signs v,
    sum of costs + tr(M H_KK) = tr(M0 H)        the error of removing everything does not depend on
                                                the way there.

Both take m^2 operations. They read three matrices for it, which takes half as long as removing a
superblock of columns: so not after every superblock. What goes wrong in between is found later, as
both identities remember it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.layer.elimination import Problem
from strucprune_core.method.layer.groups import columns_of
from strucprune_core.method.linalg.checked import require
from strucprune_core.method.linalg.matrices import Matrix, Room, carve, spans

_PROBES = 4  # Random vectors.
_TIMES = 8  # How often a curve is checked.


class CurveCheck:
    """What the removals from a problem are checked against.

    Args:
        gram: G, (f x f).
        columns: The columns that the problem began with, (m,) int64.
        eps: What was added to the diagonal.
        problem: The problem, from which nothing was removed yet.
        room: Sizes of panels.

    Raises:
        Inaccurate: the inverse has too few digits.
    """

    def __init__(
        self, gram: Matrix, columns: Tensor, eps: float, problem: Problem, room: Room
    ) -> None:
        self._gram, self._columns, self._eps, self._room = gram, columns, eps, room
        self._first = problem.groups
        self._energy, residual = self._measured(problem)
        require(residual)
        self._share = max(1, len(problem.groups) // _TIMES)
        self._next = len(problem.groups) - self._share

    def __call__(self, problem: Problem, spent: float) -> None:
        """Check what is left of the problem, if an eighth of it has gone since the last time.

        Args:
            problem: After a superblock.
            spent: Sum of the costs so far.

        Raises:
            Inaccurate: too few digits are left.
        """
        groups = len(problem.groups)
        if groups > max(0, self._next):
            return
        self._next = groups - self._share
        self.require_accurate(problem, spent)

    def require_accurate(self, problem: Problem, spent: float) -> None:
        """Check what is left of the problem.

        Raises:
            Inaccurate: too few digits are left.
        """
        if not len(problem.groups):
            left, residual = 0.0, 0.0
        else:
            left, residual = self._measured(problem)
        require(residual)
        if self._energy > 0.0:
            require(abs(spent + left - self._energy) / self._energy)

    def _measured(self, problem: Problem) -> tuple[float, float]:
        """tr(M H_KK), and the relative residual of H_KK P = I."""
        room, size = self._room, problem.size
        places = torch.searchsorted(self._first, problem.groups)
        columns = self._columns[columns_of(places, size)]
        m = len(columns)
        signs = _signs(m, room)
        solved = torch.empty_like(signs)
        step, whole = room.panels.step(m), slice(0, m)
        rows, other = room.flat(step * m), room.flat(step * m)
        for span in spans(m, step):
            panel = carve(rows, span.stop - span.start, m)
            problem.inverse.gather(span, whole, panel)
            solved[span] = panel @ signs
        energy = error = 0.0
        for span in spans(m, step):
            panel, weights = (carve(each, span.stop - span.start, m) for each in (rows, other))
            self._gram.gather(columns[span], columns, panel)
            panel[:, span].diagonal().add_(self._eps)
            residual = torch.addmm(signs[span], panel, solved, alpha=-1)
            error += float(residual.square().sum(dtype=torch.float64))
            problem.weight_gram.gather(span, whole, weights)
            energy += float(weights.mul_(panel).sum(dtype=torch.float64))
            room.tick()
        return energy, (error / signs.numel()) ** 0.5


def _signs(rows: int, room: Room) -> Tensor:
    """Random signs, (rows x probes)."""
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (rows, _PROBES), generator=draw).mul_(2).sub_(1)
    return signs.to(room.device, room.dtype)
