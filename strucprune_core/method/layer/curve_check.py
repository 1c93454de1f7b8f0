"""Checks of a damage curve in float32, after every eighth of the removals.

Two identities hold for the columns K that are left, with H = G + eps I and what was removed so far:

    H_KK P = I                  since P is the inverse of H_KK
    sum of costs + tr(M H_KK) = tr(M0 H)        the error of removing everything does not depend on
                                                the way there.

The first is tried on vectors v of random signs over sqrt(P_jj). The residual r = v - H_KK P v
stands for the error H_KK^-1 r of P v. In the norm of H_KK the square of that is r^T H_KK^-1 r,
about r^T P r, and that of P v itself v^T P v. On the average over signs, the root of their ratio is
the root mean square over columns of

    ||error of P e_j|| / ||P e_j||, in the norm of H_KK,    a bound of the relative error of P_jj

by the inequality of Cauchy and Schwarz. So it bounds what costs are made of. The residual itself
would not do: rounding in the few strongest directions makes it large, and moves no P_jj.

Both take m^2 operations, in float64, since rounding in the check itself would be taken for errors.
They read three matrices for it, which takes half as long as removing a superblock of columns: so
not after every superblock. What goes wrong in between is found later: both identities remember it.
"""

from __future__ import annotations

import math

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
        """tr(M H_KK), and the relative error of P."""
        room, size = self._room, problem.size
        places = torch.searchsorted(self._first, problem.groups)
        columns = self._columns[columns_of(places, size)]
        m = len(columns)
        step, whole = room.panels.step(m), slice(0, m)
        rows, other = (room.flat(step * m, torch.float64) for _ in range(2))
        vectors = _signs(m, room.device) * problem.inverse.diagonal()[:m, None].double().rsqrt()
        solved = _product(problem.inverse, vectors, step, rows)
        residual, energy = torch.empty_like(vectors), 0.0
        for span in spans(m, step):
            panel, weights = (carve(each, span.stop - span.start, m) for each in (rows, other))
            self._gram.gather(columns[span], columns, panel)
            panel[:, span].diagonal().add_(self._eps)
            residual[span] = torch.addmm(vectors[span], panel, solved, alpha=-1)
            problem.weight_gram.gather(span, whole, weights)
            energy += float(weights.mul_(panel).sum())
            room.tick()
        error = _inner(residual, _product(problem.inverse, residual, step, rows))
        size_of_all = _inner(vectors, solved)
        if not (error >= 0.0 and size_of_all > 0.0):  # P is not positive definite, or not a number.
            return energy, math.inf
        return energy, math.sqrt(error / size_of_all)


def _product(matrix: Matrix, vectors: Tensor, step: int, rows: Tensor) -> Tensor:
    """A symmetric matrix's first m rows and columns times (m x probes)."""
    m = len(vectors)
    result = torch.empty_like(vectors)
    for span in spans(m, step):
        panel = carve(rows, span.stop - span.start, m)
        matrix.gather(span, slice(0, m), panel)
        result[span] = panel @ vectors
    return result


def _inner(left: Tensor, right: Tensor) -> float:
    """Sum of all products."""
    return float((left * right).sum())


def _signs(rows: int, device: torch.device) -> Tensor:
    """Random signs, (rows x probes) float64."""
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (rows, _PROBES), generator=draw).mul_(2).sub_(1)
    return signs.to(device, torch.float64)
