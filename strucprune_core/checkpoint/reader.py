"""Weights from a checkpoint, one tensor (or a range of its rows) at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from strucprune_core.checkpoint.header import TensorInfo
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.errors import InvalidCheckpoint

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

# A tensor that is converted or moved is read in pieces of this size, so that its stored form is
# never in memory beside it. Large enough that requests to a store stay few.
PIECE_BYTES = 32 * 2**20


class TensorReader:
    """Reads tensors by name with ranged reads. Holds no weight itself."""

    def __init__(self, index: CheckpointIndex) -> None:
        self._index = index

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor.

        Raises:
            InvalidCheckpoint: there is no such tensor.
        """
        try:
            return self._index.tensors[name]
        except KeyError:
            raise InvalidCheckpoint(f"the checkpoint has no tensor {shown(name)}") from None

    def raw(self, name: str) -> bytearray:
        """The stored bytes of a tensor.

        Raises:
            InvalidCheckpoint: there is no such tensor.
            StorageError: the store refused or failed.
        """
        info = self.info(name)
        return self._index.store.read(info.file, info.start, info.size_bytes)

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        """A whole tensor.

        Args:
            name: The tensor's name.
            device: Where to put it.
            dtype: What to convert it to; None keeps the stored dtype.

        Raises:
            InvalidCheckpoint: there is no such tensor.
            StorageError: the store refused or failed.
        """
        info = self.info(name)
        if not info.shape:
            return _decode(self.raw(name), info.dtype, ()).to(device, dtype)
        return self.rows(name, 0, info.shape[0], device=device, dtype=dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        """Rows `start` to `stop` of a tensor's leading dimension: (stop - start, ...).

        Raises:
            InvalidCheckpoint: there is no such tensor, or it has no such rows.
            StorageError: the store refused or failed.
        """
        info = self.info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise InvalidCheckpoint(
                f"tensor {shown(name)} of shape {info.shape} has no rows {start} to {stop}"
            )
        stored = TORCH_DTYPES[info.dtype]
        target, place = dtype or stored, torch.device(device)
        if target == stored and place.type == "cpu":
            return self._stored_rows(info, start, stop)
        result = torch.empty((stop - start, *info.shape[1:]), dtype=target, device=place)
        step = max(1, PIECE_BYTES // max(1, _row_bytes(info)))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            result[first - start : last - start].copy_(self._stored_rows(info, first, last))
        return result

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor as it is stored, some rows at a time, on the CPU.

        Raises:
            InvalidCheckpoint: there is no such tensor.
            StorageError: the store refused or failed.
        """
        info = self.info(name)
        if not info.shape:
            yield self.tensor(name, dtype=None)
            return
        step = max(1, PIECE_BYTES // max(1, _row_bytes(info)))
        for start in range(0, info.shape[0], step):
            yield self._stored_rows(info, start, min(start + step, info.shape[0]))

    def _stored_rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        row_bytes = _row_bytes(info)
        data = self._index.store.read(
            info.file, info.start + start * row_bytes, (stop - start) * row_bytes
        )
        return _decode(data, info.dtype, (stop - start, *info.shape[1:]))


def _row_bytes(info: TensorInfo) -> int:
    return info.size_bytes // info.shape[0] if info.shape[0] else 0


def _decode(data: bytearray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """View bytes as a tensor, which takes over the buffer: no copy."""
    if not data:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=TORCH_DTYPES[dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)
