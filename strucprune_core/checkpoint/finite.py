"""Checks by reading that all values of a tensor are finite, before anything is computed with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint

_COUNTED_VALUES = 2**14
_LARGEST = torch.finfo(torch.float32).max  # All computation is in float32.


def check_finite_tensor(
    reader: TensorReader, name: str, tick: Callable[[], None], layer: int | None = None
) -> None:
    """Read a tensor once, in pieces, and check its values as float32.

    Args:
        reader: The checkpoint.
        name: A floating-point tensor of it.
        tick: Called after each piece: a safe point to stop at.
        layer: The decoder layer that it belongs to, for the error.

    Raises:
        InvalidCheckpoint: a value is NaN, infinite, or too large for float32.
        StorageError: the store refused or failed.
    """
    nans = infinities = 0
    for piece in reader.pieces(name):
        if not _is_finite(piece):
            more = _counted(piece)
            infinities, nans = infinities + more[0], nans + more[1]
        tick()
    if not nans + infinities:
        return
    parts = [f"{nans:,} NaN"] * bool(nans) + [f"{infinities:,} infinite"] * bool(infinities)
    info = reader.info(name)
    raise InvalidCheckpoint(
        f"tensor {shown(name)} in {info.file} has {nans + infinities:,} of {info.parameters:,} "
        f"values that are not finite in float32 ({', '.join(parts)})",
        field="model.uri",
        layer=layer,
        remedy="Copy the model again; if its source has the same values, it cannot be pruned.",
    )


def _counted(piece: Tensor) -> tuple[int, int]:
    """How many values are infinite as float32, and how many NaN; counted in small parts."""
    infinities = nans = 0
    for part in torch.split(piece.view(-1), _COUNTED_VALUES):
        values = part.float()
        infinities += int(values.isinf().sum())
        nans += int(values.isnan().sum())
    return infinities, nans


def _is_finite(piece: Tensor) -> bool:
    """In one pass and without a mask: with a NaN among the values, the extremes are NaN."""
    if not piece.numel():
        return True
    low, high = (float(value) for value in torch.aminmax(piece))
    return low >= -_LARGEST and high <= _LARGEST
