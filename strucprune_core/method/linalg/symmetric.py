"""Symmetric matrices by row panels of their lower half: sums of outer products, and the inverse.

The inverse gives Optimal Brain Surgeon its H^-1. It is a Gauss-Jordan sweep by blocks (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", section 14.4), because that works in place: a
factor and the inverse made from it would need the space of two matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.linalg.matrices import Matrix, Room, carve, spans


def add_gram(matrix: Matrix, rows: Tensor, step: int, buffer: Tensor) -> None:
    """Add rows^T rows to the lower half of a matrix.

    Args:
        matrix: (m x m), of the rows' dtype.
        rows: (q x m).
        step: Rows of a panel.
        buffer: For reads of `step` rows; see `Room.buffer_for`.
    """
    for span in spans(rows.shape[1], step):
        below = slice(0, span.stop)
        panel = matrix.read(span, below, buffer)
        panel.addmm_(rows[:, span].T, rows[:, below])
        matrix.write(span, below, panel)


def add_product(matrix: Matrix, left: Tensor, right: Tensor, step: int, buffer: Tensor) -> None:
    """Add left^T right to a matrix that need not be symmetric.

    Args:
        matrix: (d x m), of the others' dtype.
        left: (q x d).
        right: (q x m).
        step: Rows of a panel.
        buffer: For reads of `step` rows; see `Room.buffer_for`.
    """
    whole = slice(0, right.shape[1])
    for span in spans(left.shape[1], step):
        panel = matrix.read(span, whole, buffer)
        panel.addmm_(left[:, span].T, right)
        matrix.write(span, whole, panel)


def mirror(matrix: Matrix, step: int, buffer: Tensor, factor: float = 1.0) -> None:
    """Multiply the lower half and copy it to the upper one.

    Args:
        matrix: (m x m).
        step: Rows of a panel.
        buffer: For reads of `step` rows; see `Room.buffer_for`.
        factor: What to multiply with.
    """
    for span in spans(matrix.shape[0], step):
        panel = matrix.read(span, slice(0, span.stop), buffer)
        matrix.write_symmetric(span, panel if factor == 1.0 else panel.mul_(factor))


def invert(matrix: Matrix, room: Room) -> bool:
    """Invert a symmetric positive definite matrix in place; both halves of the result are written.

    Gauss-Jordan elimination by blocks, without pivoting, which is stable for these matrices (Higham
    2002, "Accuracy and Stability of Numerical Algorithms", section 14.4). Sweeping block k is

        A_ij <- A_ij - A_ik A_kk^-1 A_kj      A_ik <- A_ik A_kk^-1      A_kk <- -A_kk^-1

    for i, j other than k; once all are swept A is minus the inverse. About m^3 operations, as many
    as a Cholesky factor and the inverse from it, and the lower half is read and written m / p times
    for panels of p rows.

    Args:
        matrix: (m x m) float64; only its lower half is read.
        room: Sizes of panels.

    Returns:
        False if it is not positive definite; then its contents are undefined.
    """
    m = matrix.shape[0]
    step = room.panels.step(m)
    columns, buffer = room.flat(step * m), room.buffer_for(matrix, step)
    for pivot in spans(m, step):
        if not _sweep(matrix, pivot, step, columns, buffer):
            return False
        room.tick()
    mirror(matrix, step, buffer, -1.0)
    return True


def _sweep(matrix: Matrix, pivot: slice, step: int, columns: Tensor, buffer: Tensor) -> bool:
    m, (first, last) = matrix.shape[0], (pivot.start, pivot.stop)
    cross = carve(columns, last - first, m)  # A_k:
    cross[:, :last] = matrix.read(pivot, slice(0, last), buffer)
    cross[:, last:] = matrix.read(slice(last, m), pivot, buffer).T
    lower, info = torch.linalg.cholesky_ex(cross[:, pivot])
    if int(info) != 0:
        return False
    inverse = torch.cholesky_inverse(lower, out=lower)
    for span in spans(m, step):
        if span == pivot:
            continue
        below = slice(0, span.stop)
        solved = inverse @ cross[:, span]
        panel = matrix.read(span, below, buffer)
        panel.addmm_(solved.T, cross[:, below], alpha=-1)
        if span.start > first:
            panel[:, pivot] = solved.T
        else:
            matrix.write(pivot, span, solved)
        del solved  # Frees its memory before the next one is made.
        matrix.write(span, below, panel)
    matrix.write(pivot, pivot, inverse.neg_())
    return True
