"""Solves in float32 where that is as good as float64, found by checks of each result.

Many GPUs compute 32 or 64 times as fast in float32, and processors twice as fast. What is solved
here needs few digits: H is damped, so it is well conditioned, and it is a sum over tokens that are
a sample anyway. So float32 comes first where float64 is slow, and on processors for curves of wide
matrices, which take most of a job's time. (Not for repairs there: to refine them costs what float32
gains.) A result in float32 is used if its own checks find relative errors of at most

    sqrt(eps) = 3.5e-4,       eps = 2^-23,

half of the digits of float32. What is checked: of a repair a bound of the error in the layer's
output (`layer.ridge`); of a curve the inverse and the sum of all costs, after every eighth of the
removals (`layer.curve_check`). Otherwise, and if a factorisation fails, everything is computed
again in float64. No ridge is raised in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.linalg.matrices import Room
from strucprune_core.method.linalg.tf32 import tf32_products

T = TypeVar("T")

TOLERANCE = float(torch.finfo(torch.float32).eps) ** 0.5


class Inaccurate(Exception):
    """A result in float32 has too few digits. It never leaves `checked`."""


def checked(room: Room, compute: Callable[[Room], T]) -> T:
    """What `compute` makes: in the room's dtype if that is accurate, else in float64.

    Args:
        room: Where matrices lie, and in what to compute.
        compute: Computes in the dtype of the room that it is given. In float32 it calls `require`.
    """
    if room.dtype == torch.float64:
        return compute(room)
    try:
        with tf32_products(allowed=False):
            return compute(room)
    except (Inaccurate, NumericalFailure):
        return compute(replace(room, dtype=torch.float64))


def is_checked(room: Room) -> bool:
    """Whether results in this room are checked: those in float32 are."""
    return room.dtype != torch.float64


def require(residual: float) -> None:
    """Refuse a result of which the relative residual is too large.

    Raises:
        Inaccurate: it is, or it is not a number.
    """
    if not residual <= TOLERANCE:
        raise Inaccurate


def settled(done: bool, room: Room) -> bool:
    """Whether a factorisation was `done`; in float32 a failure is one of digits.

    Raises:
        Inaccurate: it was not, in float32.
    """
    if not done and is_checked(room):
        raise Inaccurate
    return done
