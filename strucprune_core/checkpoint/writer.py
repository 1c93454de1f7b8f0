"""Safetensors files, written one tensor at a time: the header first, since shapes are known.

The same tensors give the same bytes. Files are laid out as the reference implementation lays them
out: wider dtypes first, header padded with spaces so that the data starts at a multiple of 8.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from strucprune_core.checkpoint.file_names import SINGLE_FILE
from strucprune_core.checkpoint.header import DTYPE_BYTES, LENGTH_BYTES, METADATA_KEY
from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.errors import NumericalFailure, StrucPruneError

_ALIGNMENT_BYTES = 8
# Elements that are checked for NaN at a time: bounds the memory of the check.
_CHECK_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes it will occupy."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be written, with its tensors in file order."""

    file_name: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def plan_shards(tensors: Sequence[PlannedTensor], max_shard_bytes: int) -> list[Shard]:
    """Divide tensors, in their order, over files of at most `max_shard_bytes`.

    A tensor larger than that gets a file of its own. File names are those of the Hugging Face
    layout.

    Raises:
        StrucPruneError: two tensors share a name, or there is none.
    """
    if not tensors or len({tensor.name for tensor in tensors}) != len(tensors):
        raise StrucPruneError("a checkpoint needs at least one tensor, each with its own name")
    groups: list[list[PlannedTensor]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        if groups[-1] and filled_bytes + tensor.size_bytes > max_shard_bytes:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(tensor)
        filled_bytes += tensor.size_bytes
    return [
        # Wider dtypes first keeps every tensor aligned to its own item size; the sort is stable.
        Shard(name, tuple(sorted(group, key=lambda tensor: -DTYPE_BYTES[tensor.dtype])))
        for name, group in zip(_file_names(len(groups)), groups, strict=True)
    ]


def write_shard(
    path: Path, shard: Shard, produce: Callable[[str], Tensor | Iterable[Tensor]]
) -> str:
    """Write one file, asking for its tensors one after the other.

    Args:
        path: The file to write; replaced if it exists.
        shard: What it holds.
        produce: Gives the tensor of a name, on any device, or pieces of it along its first axis;
            called once each, in file order.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        NumericalFailure: a tensor is not finite.
        StrucPruneError: a tensor has another dtype or shape than planned.
    """
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            _write(file, digest.update, header_bytes(shard))
            for planned in shard.tensors:
                for data in _checked_bytes(planned, produce(planned.name)):
                    _write(file, digest.update, data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # Half a file must not look like a whole one.
        raise
    return digest.hexdigest()


def index_json(shards: Sequence[Shard]) -> bytes:
    """The `model.safetensors.index.json` of several shards."""
    weight_map = {tensor.name: shard.file_name for shard in shards for tensor in shard.tensors}
    document = {
        "metadata": {
            "total_parameters": sum(
                math.prod(tensor.shape) for shard in shards for tensor in shard.tensors
            ),
            "total_size": sum(shard.size_bytes for shard in shards),
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def header_bytes(shard: Shard) -> bytes:
    """The beginning of a shard's file, up to its first tensor's bytes."""
    entries: dict[str, object] = {METADATA_KEY: {"format": "pt"}}
    start = 0
    for tensor in shard.tensors:
        end = start + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padding = -len(text) % _ALIGNMENT_BYTES
    return (len(text) + padding).to_bytes(LENGTH_BYTES, "little") + text + b" " * padding


def _checked_bytes(
    planned: PlannedTensor, given: Tensor | Iterable[Tensor]
) -> Iterator[memoryview]:
    """The tensor's bytes, piece by piece."""
    if isinstance(given, Tensor):
        _check_planned(planned, given.dtype, tuple(given.shape))
        yield _finite_bytes(planned, given)
        return
    rows = 0
    for piece in given:
        rows += len(piece)
        _check_planned(planned, piece.dtype, (planned.shape[0], *piece.shape[1:]))
        yield _finite_bytes(planned, piece)
    _check_planned(planned, TORCH_DTYPES[planned.dtype], (rows, *planned.shape[1:]))


def _check_planned(planned: PlannedTensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if dtype != TORCH_DTYPES[planned.dtype] or shape != planned.shape:
        raise StrucPruneError(
            f"tensor '{planned.name}' is {dtype} {shape}, but "
            f"{planned.dtype} {planned.shape} was planned"
        )


def _finite_bytes(planned: PlannedTensor, tensor: Tensor) -> memoryview:
    """The bytes, without a copy if the tensor is contiguous on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.is_floating_point() and not _is_finite(flat):
        raise NumericalFailure(
            f"tensor '{planned.name}' has values that are not finite",
            remedy="If the model's own weights hold NaN or infinity, get a sound copy; if not, "
            "raise pruning.damping or use more calibration samples.",
        )
    return flat.view(torch.uint8).numpy().data


def _is_finite(flat: Tensor) -> bool:
    for start in range(0, flat.numel(), _CHECK_ELEMENTS):
        part = flat[start : start + _CHECK_ELEMENTS]
        if part.element_size() == 1:  # torch has no isfinite for float8.
            part = part.float()
        if not torch.isfinite(part).all():
            return False
    return True


def _write(file: BinaryIO, update: Callable[[memoryview], None], data: bytes | memoryview) -> None:
    view = memoryview(data)
    file.write(view)
    update(view)
