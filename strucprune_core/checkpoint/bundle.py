"""Several tensors of a unit in one safetensors file, written and read one at a time.

A tensor too large for memory is mapped: `new_bundle` makes a file to be filled in any order, and
`map_from_bundle` reads one in parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from strucprune_core.checkpoint.header import parse_header
from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.checkpoint.writer import (
    PlannedTensor,
    Shard,
    header_bytes,
    plan_shards,
    write_shard,
)
from strucprune_core.scratch.arrays import take_space
from strucprune_core.scratch.directories import scratch_errors

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NUMPY_NAMES = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}  # Of tensors that can be mapped.


def save_bundle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file.

    Raises:
        NumericalFailure: a tensor is not finite.
    """
    planned = [
        PlannedTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    write_shard(path, _shard(planned), tensors.__getitem__)


def _shard(tensors: Sequence[PlannedTensor]) -> Shard:
    """One file of tensors; a layer without a site has none."""
    if not tensors:
        return Shard("", ())
    size_bytes = sum(tensor.size_bytes for tensor in tensors)
    (shard,) = plan_shards(tensors, max(1, size_bytes))
    return shard


def bundle_names(path: Path) -> list[str]:
    """Names of a file's tensors."""
    with safe_open(path, framework="pt") as bundle:
        return sorted(bundle.keys())


def load_from_bundle(path: Path, name: str, device: torch.device) -> Tensor:
    """A copy of one tensor of a file, on a device.

    Raises:
        InvalidCheckpoint: the file is damaged.
    """
    mapped = torch.from_numpy(map_from_bundle(path, name))
    return torch.empty(mapped.shape, dtype=mapped.dtype, device=device).copy_(mapped)


def load_stored(path: Path, name: str) -> Tensor:
    """One tensor of a file as it is stored, of any dtype."""
    with safe_open(path, framework="pt") as bundle:
        tensor: Tensor = bundle.get_tensor(name)
    return tensor


@contextmanager
def new_bundle(path: Path, tensors: Sequence[PlannedTensor]) -> Iterator[dict[str, NDArray[Any]]]:
    """A file laid out as by `save_bundle`, whose tensors are filled while the context lasts.

    Yields writable arrays of zeros by name, mapped to the file. The caller must fill them with
    finite values. An exception in the context removes the file.

    Args:
        path: The file to write; replaced if it exists.
        tensors: What it holds; F64, F32 or I64, none empty.

    Raises:
        ScratchUnavailable: the disk is full, or cannot be written to.
    """
    shard = _shard(tensors)
    size_bytes = shard.size_bytes
    header = header_bytes(shard)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with scratch_errors(f"a file of {size_bytes:,} bytes"), path.open("w+b") as file:
            file.write(header)
            file.flush()
            take_space(file.fileno(), len(header) + size_bytes)
            start = len(header)
            for tensor in shard.tensors:
                arrays[tensor.name] = np.memmap(
                    file, _NUMPY_NAMES[tensor.dtype], "r+", offset=start, shape=tensor.shape
                )
                start += tensor.size_bytes
        yield arrays
        with scratch_errors(f"a file of {size_bytes:,} bytes"), path.open("rb") as file:
            os.fsync(file.fileno())  # Pages of a shared mapping are the file's own.
    except BaseException:
        path.unlink(missing_ok=True)  # Half a file must not look like a whole one.
        raise


def map_from_bundle(path: Path, name: str) -> NDArray[Any]:
    """One tensor of a file, F64, F32 or I64, mapped to memory; changes stay private.

    Raises:
        InvalidCheckpoint: the file is damaged.
    """
    with path.open("rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        info = parse_header(read, path.name, path.stat().st_size).tensors[name]
        dtype = _NUMPY_NAMES[info.dtype]
        if not info.size_bytes:  # An empty file range cannot be mapped.
            return np.zeros(info.shape, dtype)
        return np.memmap(file, dtype, "c", offset=info.start, shape=info.shape)
