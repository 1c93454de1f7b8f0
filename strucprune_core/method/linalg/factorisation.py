"""Cholesky factors of G + ridge I, whole or by panels, with a counted and reported retry.

The algorithm is the blocked left-looking Cholesky factorisation of the textbooks (Golub and Van
Loan, "Matrix Computations", chapter 4). If a matrix is not positive definite, the ridge grows
tenfold and the attempt is counted. We never fall back silently, for example to the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.linalg.matrices import Matrix, Room, carve, spans

RIDGE_GROWTH = 10.0  # Each retry multiplies the ridge by this.
MAX_RETRIES = 6  # A million times the first ridge: beyond it the matrix is not a Gram matrix.
REMEDY = "Use more calibration samples."


@dataclass(frozen=True, slots=True)
class Factor:
    """A Cholesky factor of `G + ridge I`.

    Attributes:
        lower: Lower triangle, (m x m), float64.
        ridge: What was added to the diagonal in the end.
        retries: How often the ridge had to be raised; 0 is usual.
    """

    lower: Tensor
    ridge: float
    retries: int


def check_finite(diagonal: Tensor) -> None:
    """Refuse statistics that overflowed; an overflow always shows on the diagonal.

    Raises:
        NumericalFailure: an entry of the diagonal is not finite.
    """
    if not torch.isfinite(diagonal).all():
        raise NumericalFailure(
            "the Gram matrix has non-finite entries",
            remedy="The model's activations overflow on the calibration text. Use another text; if "
            "that does not help, the model's weights are damaged.",
        )


def raise_ridge(
    attempt: Callable[[float], bool], ridge: float, remedy: str = REMEDY
) -> tuple[float, int]:
    """Try with a growing ridge until it succeeds; return the last ridge and the retries.

    Raises:
        NumericalFailure: no ridge up to `RIDGE_GROWTH**MAX_RETRIES` times the first does.
    """
    for retries in range(MAX_RETRIES + 1):
        if attempt(ridge):
            return ridge, retries
        ridge *= RIDGE_GROWTH
    raise NumericalFailure(
        f"the Gram matrix is not positive definite with a ridge of {ridge:.3g}",
        remedy=remedy,
    )


def factorise(gram: Tensor, ridge: float, remedy: str = REMEDY) -> Factor:
    """Cholesky of `gram + ridge I`, raising the ridge until it succeeds.

    Args:
        gram: Symmetric (m x m), float64. Not modified.
        ridge: First value added to the diagonal, > 0.
        remedy: The remedy in the error; longer where the user can set the ridge.

    Raises:
        NumericalFailure: `gram` is not finite, or no ridge up to `RIDGE_GROWTH**MAX_RETRIES`
            times the first gives a positive definite matrix.
    """
    check_finite(gram.diagonal())
    lower = torch.empty(0)

    def attempt(ridge: float) -> bool:
        nonlocal lower
        damped = gram.clone()
        damped.diagonal().add_(ridge)
        lower, info = torch.linalg.cholesky_ex(damped)
        return int(info) == 0

    ridge, retries = raise_ridge(attempt, ridge, remedy)
    return Factor(lower, ridge, retries)


def factorise_into(lower: Matrix, fill: Callable[[slice, Tensor], None], room: Room) -> bool:
    """Cholesky factor of a matrix that is made panel by panel.

    Left-looking: all earlier panels are read again to reduce a panel, which is written once.

    Args:
        lower: Where the factor goes, (m x m) float64; its upper half is not written.
        fill: Writes rows a:b, columns :b of the matrix to a tensor of that shape.
        room: Sizes of panels.

    Returns:
        False if the matrix is not positive definite.
    """
    m = lower.shape[0]
    step = room.panels.step(m)
    rows, buffer = room.flat(step * m), room.buffer_for(lower, step)
    for span in spans(m, step):
        panel = carve(rows, span.stop - span.start, span.stop)
        fill(span, panel)
        left, corner = panel[:, : span.start], panel[:, span]
        solve_forward(lower, left, step, buffer)
        corner.addmm_(left, left.T, alpha=-1)
        factor, info = torch.linalg.cholesky_ex(corner)
        if int(info) != 0:
            return False
        corner.copy_(factor)
        lower.write(span, slice(0, span.stop), panel)
        room.tick()
    return True


def solve_forward(lower: Matrix, right: Tensor, step: int, buffer: Tensor) -> None:
    """Solve X L^T = B in place of B, (r x c) float64, with the first c rows of a factor L.

    Args:
        lower: L, (m x m); only its lower half is read.
        right: B; overwritten by X.
        step: Rows of L that are read at a time.
        buffer: For reads of `step` rows; see `Room.buffer_for`.
    """
    for span in spans(right.shape[1], step):
        panel = lower.read(span, slice(0, span.stop), buffer)
        part = right[:, span]
        part.addmm_(right[:, : span.start], panel[:, : span.start].T, alpha=-1)
        part.copy_(torch.linalg.solve_triangular(panel[:, span].T, part, upper=True, left=False))


def solve_backward(lower: Matrix, right: Tensor, step: int, buffer: Tensor) -> None:
    """Solve X L = B in place of B, (r x m) float64, with a whole factor L; see `solve_forward`."""
    for span in reversed(list(spans(right.shape[1], step))):
        panel = lower.read(span, slice(0, span.stop), buffer)
        part = right[:, span]
        part.copy_(torch.linalg.solve_triangular(panel[:, span], part, upper=False, left=False))
        right[:, : span.start].addmm_(part, panel[:, : span.start], alpha=-1)
