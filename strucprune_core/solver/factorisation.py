"""Cholesky factors with a counted, reported retry: never a silent numeric fallback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure

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


def check_finite(gram: Tensor) -> None:
    """Refuse statistics that overflowed: whatever does shows on the diagonal.

    Raises:
        NumericalFailure: an entry of the diagonal is not finite.
    """
    if not torch.isfinite(gram.diagonal()).all():
        raise NumericalFailure(
            "the Gram matrix has non-finite entries",
            remedy="The model's activations overflow on this calibration text; check the weights.",
        )


def factorise(gram: Tensor, ridge: float, remedy: str = REMEDY) -> Factor:
    """Cholesky of `gram + ridge I`, raising the ridge until it succeeds.

    Args:
        gram: Symmetric (m x m), float64. Not modified.
        ridge: First value added to the diagonal, > 0.
        remedy: What the user is told to do if it fails; more where the ridge is the user's choice.

    Raises:
        NumericalFailure: `gram` is not finite, or no ridge up to `RIDGE_GROWTH**MAX_RETRIES`
            times the first gives a positive definite matrix.
    """
    check_finite(gram)
    for retries in range(MAX_RETRIES + 1):
        damped = gram.clone()
        damped.diagonal().add_(ridge)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return Factor(lower, ridge, retries)
        ridge *= RIDGE_GROWTH
    raise NumericalFailure(
        f"the Gram matrix is not positive definite with a ridge of {ridge:.3g}",
        remedy=remedy,
    )
