"""Matrices that may be larger than the device: resident there, or copied to it in panels.

Routines process a symmetric matrix in row panels of its lower half, rows a:b and columns :b. The
upper half is written where whole rows are needed. `Room` says where new matrices are stored and how
large a panel is. A routine is the same for both kinds of matrices: it computes in place on the
device, and copies parts of other matrices through a buffer. This is our own part of the memory
bound (docs/memory.md): with panels, memory does not grow with f^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strucprune_core.method.linalg.panels import ALL_RESIDENT, Panels

Index = slice | Tensor
"""Rows or columns: a slice with both ends, or ascending indices, (k,) int64."""


class Matrix(Protocol):
    """A matrix of (rows x columns) that is read and written in parts."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def resident(self) -> bool:
        """Whether it is on the device, so that a panel of it needs no buffer."""

    @property
    def tensor(self) -> Tensor:
        """All of it where it is stored, without a copy."""

    def read(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        """A part, in `buffer` (flat, large enough) or in the matrix's own memory.

        A caller that changes it must `write` it back.
        """

    def gather(self, rows: Index, columns: Index, out: Tensor) -> None:
        """Copy a part to `out`, which may be of a wider dtype."""

    def write(self, rows: slice, columns: slice, values: Tensor) -> None:
        """Overwrite a part; `values` may be what `read` returned."""

    def write_symmetric(self, rows: slice, panel: Tensor) -> None:
        """Overwrite rows a:b, columns :b, and the mirror image, rows :a, columns a:b."""

    def diagonal(self) -> Tensor:
        """A copy of the diagonal, on the device."""


class DeviceMatrix:
    """A tensor as a `Matrix`."""

    resident = True

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    @property
    def tensor(self) -> Tensor:
        """The tensor itself."""
        return self._tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._tensor.shape
        return rows, columns

    def read(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        """A view of the tensor; `buffer` is not used."""
        return self._tensor[rows, columns]

    def gather(self, rows: Index, columns: Index, out: Tensor) -> None:
        """Copy a part to `out`."""
        if isinstance(rows, Tensor) and isinstance(columns, Tensor):
            out.copy_(self._tensor[rows[:, None], columns])
        else:
            out.copy_(_selected(_selected(self._tensor, 1, columns), 0, rows))

    def write(self, rows: slice, columns: slice, values: Tensor) -> None:
        """Overwrite a part; a view that `read` returned needs no copy."""
        target = self._tensor[rows, columns]
        if target.data_ptr() != values.data_ptr():
            target.copy_(values)

    def write_symmetric(self, rows: slice, panel: Tensor) -> None:
        """Overwrite a row panel and its mirror image."""
        self.write(rows, slice(0, rows.stop), panel)
        self._tensor[: rows.start, rows].copy_(panel[:, : rows.start].T)

    def diagonal(self) -> Tensor:
        """A copy of the diagonal."""
        return self._tensor.diagonal().clone()


def _selected(tensor: Tensor, axis: int, index: Index) -> Tensor:
    if isinstance(index, slice):
        return tensor.narrow(axis, index.start, index.stop - index.start)
    return tensor.index_select(axis, index)


def as_matrix(matrix: Tensor | Matrix) -> Matrix:
    """A tensor as a `Matrix`; a `Matrix` as it is."""
    return DeviceMatrix(matrix) if isinstance(matrix, Tensor) else matrix


def no_tick() -> None:
    """A `tick` that never stops the work."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where the matrices of a solve are stored, and how much of them is on the device at a time.

    Attributes:
        device: Where to compute.
        panels: How large panels are.
        scratch: Makes a matrix of zeros, (rows, columns, dtype), that is not on the device; None
            where everything fits.
        tick: Called after each panel or block: a safe point to stop at.
        dtype: What is computed in: float64, or float32 on devices that are far slower in float64.
    """

    device: torch.device
    panels: Panels = ALL_RESIDENT
    scratch: Callable[[int, int, torch.dtype], Matrix] | None = None
    tick: Callable[[], None] = no_tick
    dtype: torch.dtype = torch.float64

    def matrix(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Matrix:
        """A new matrix of zeros: on the device if its rows fit a panel."""
        dtype = dtype or self.dtype
        if self.scratch is None or self.panels.fits(columns):
            return DeviceMatrix(torch.zeros(rows, columns, dtype=dtype, device=self.device))
        return self.scratch(rows, columns, dtype)

    def flat(self, elements: int, dtype: torch.dtype | None = None) -> Tensor:
        """A flat buffer on the device."""
        return torch.empty(elements, dtype=dtype or self.dtype, device=self.device)

    def buffer_for(self, matrix: Matrix, rows: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer in which `matrix.read` can return this number of whole rows."""
        return self.flat(0 if matrix.resident else rows * matrix.shape[1], dtype)


def carve(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """A contiguous (rows x columns) at the beginning of a flat buffer."""
    return buffer[: rows * columns].view(rows, columns)


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of `size`, the last one shorter, that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
