"""Arrays mapped to temporary files. No torch.

Their space on disk is allocated when they are made. Otherwise a disk that is full later kills the
process that writes to the mapping (SIGBUS), and nobody can report an error.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from strucprune_core.scratch.directories import scratch_errors


def temporary_array(
    directory: Path, shape: tuple[int, ...], dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Zeros, mapped to a file without a name: its space is freed with the last reference.

    Raises:
        ScratchUnavailable: the disk is full, or the directory cannot be written to.
    """
    size_bytes = _size_bytes(shape, dtype)
    with (
        scratch_errors(f"an array of {size_bytes:,} bytes"),
        tempfile.TemporaryFile(dir=directory) as file,
    ):
        take_space(file.fileno(), size_bytes)
        return np.memmap(file, dtype, "r+", shape=shape)


def new_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike = np.float32
) -> np.memmap[tuple[int, ...], Any]:
    """Zeros, mapped to a new .npy file.

    Raises:
        ScratchUnavailable: the disk is full, or the file cannot be written.
    """
    size_bytes = _size_bytes(shape, dtype)
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with scratch_errors(f"an array of {size_bytes:,} bytes"), path.open("w+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.flush()
        take_space(file.fileno(), start + size_bytes)
        return np.memmap(file, dtype, "r+", offset=start, shape=shape)


def take_space(descriptor: int, size_bytes: int) -> None:
    """Allocate the blocks of a file of this length.

    Raises:
        OSError: the disk is full.
    """
    if size_bytes:
        os.posix_fallocate(descriptor, 0, size_bytes)


def _size_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    size = np.dtype(dtype).itemsize
    for length in shape:
        size *= int(length)
    return size
