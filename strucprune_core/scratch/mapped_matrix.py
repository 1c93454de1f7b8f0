"""A `Matrix` in host memory, usually a mapped file.

Reads put a part on the device. The system pages a mapped file in and out, so a matrix may be larger
than memory, and no memory budget counts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.method.linalg.matrices import Index, Matrix, carve
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.scratch.arrays import temporary_array

_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
}


class HostMatrix:
    """An array (rows x columns) as a `Matrix`.

    Args:
        array: Writable, float32 or float64; usually memory-mapped.
        device: Where reads put parts of it.
        transfers: Counts what crosses.
    """

    resident = False

    def __init__(
        self, array: NDArray[Any], device: torch.device, transfers: Transfers | None = None
    ) -> None:
        self._array = np.asarray(array)  # A plain view: slices of a memmap are slow to make.
        self._device = device
        self._transfers = transfers or Transfers()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._array.shape
        return rows, columns

    @property
    def tensor(self) -> Tensor:
        """All of it, on the host."""
        return torch.from_numpy(self._array)

    def read(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        """A part, in `buffer`."""
        part = self._array[rows, columns]
        block = carve(buffer, *part.shape)
        self._transfers.count(to_device=part.nbytes)
        return block.copy_(torch.from_numpy(part))

    def gather(self, rows: Index, columns: Index, out: Tensor) -> None:
        """Copy a part to `out`; it is selected on the host."""
        columns = slice(0, 0) if isinstance(columns, Tensor) and not len(columns) else columns
        if isinstance(columns, slice):
            part = _taken(self._array[:, columns], rows)
        else:
            # Only the range of columns that is asked for, so that the copy of rows stays small.
            first, last = int(columns[0]), int(columns[-1]) + 1
            stretch = _taken(self._array[:, first:last], rows)
            part = np.take(stretch, columns.cpu().numpy() - first, axis=1)
        self._transfers.count(to_device=part.nbytes)
        out.copy_(torch.from_numpy(part))

    def write(self, rows: slice, columns: slice, values: Tensor) -> None:
        """Overwrite a part with values on the device."""
        self._transfers.count(to_host=values.nbytes)
        self._store(rows, columns, values)

    def write_symmetric(self, rows: slice, panel: Tensor) -> None:
        """Overwrite a row panel and its mirror image."""
        self._transfers.count(to_host=panel.nbytes)
        host = panel.cpu()  # Once: a transpose on the device would take as much memory again.
        self._store(rows, slice(0, rows.stop), host)
        self._store(slice(0, rows.start), rows, host[:, : rows.start].T)

    def _store(self, rows: slice, columns: slice, values: Tensor) -> None:
        torch.from_numpy(self._array[rows, columns]).copy_(values)

    def diagonal(self) -> Tensor:
        """A copy of the diagonal, on the device."""
        self._transfers.count(to_device=self._array.diagonal().nbytes)
        return torch.from_numpy(self._array.diagonal().copy()).to(self._device)


def _taken(array: NDArray[Any], rows: Index) -> NDArray[Any]:
    # Not `np.take`: it first copies the whole of an array that is a view.
    return array[rows if isinstance(rows, slice) else rows.cpu().numpy()]


class ScratchMatrices:
    """Makes matrices in files of a scratch directory. The files have no names: none is left over.

    Args:
        directory: Where; needs space for whole matrices.
        device: Where reads put parts of them.
        transfers: Counts what crosses.
    """

    def __init__(
        self, directory: Path, device: torch.device, transfers: Transfers | None = None
    ) -> None:
        self._directory, self._device = directory, device
        self._transfers = transfers or Transfers()

    def __call__(self, rows: int, columns: int, dtype: torch.dtype) -> Matrix:
        """A matrix of zeros. Its space is allocated now, and freed with the last reference.

        Raises:
            ScratchUnavailable: the disk is full, or the directory cannot be written to.
        """
        array = temporary_array(self._directory, (rows, columns), _NUMPY_DTYPES[dtype])
        return HostMatrix(array, self._device, self._transfers)
