"""Weights from a checkpoint, one tensor (or a range of its rows) at a time.

Tensors that are stored in another form than they are read in (`TensorInfo.form`) are converted on
the way: see `checkpoint.dequantised`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from strucprune_core.checkpoint.dequantised import low_rank_rows, mxfp4_channels, scale_blocks
from strucprune_core.checkpoint.header import EXPONENTS, MXFP4, LowRank, TensorInfo
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.mxfp4 import BLOCK_BYTES, BLOCK_NUMBERS
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.read_ahead import ReadAheadStore
from strucprune_core.storage.store import Readable

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
    EXPONENTS: torch.float8_e8m0fnu,
}

# A tensor that is converted or moved is read in pieces of this size, so that its stored form is
# never in memory beside it. Large enough that requests to a store stay few.
PIECE_BYTES = 32 * 2**20
# What is copied to a GPU at once: of as much, that is there in the stored dtype and in the new one.
PINNED_BYTES = 4 * 2**20
# Of a number in MXFP4 while it is unpacked: 0.5 as stored, 2 as an index, 4 as its value.
_BYTES_PER_PACKED_NUMBER = 8


class TensorReader:
    """Reads tensors by name with ranged reads. Holds no weight of the model itself.

    Args:
        index: The checkpoint's layout.
        on_read: Called with the bytes of each read.
    """

    def __init__(
        self, index: CheckpointIndex, on_read: Callable[[int], None] = lambda _: None
    ) -> None:
        self._index, self._on_read = index, on_read
        # Of an adapter, the matrices of the tensor that was read last: it is read in many pieces.
        self._pair: tuple[tuple[str, str], Tensor, Tensor] | None = None

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor.

        Raises:
            InvalidCheckpoint: there is no such tensor.
        """
        try:
            return self._index.tensors[name]
        except KeyError:
            raise InvalidCheckpoint(f"the checkpoint has no tensor {shown(name)}") from None

    def expect(self, names: Iterable[str]) -> None:
        """Have tensors fetched that are likely to be read next, if the model is far away."""
        store = self._index.store
        if isinstance(store, ReadAheadStore):
            infos = [self.info(name) for name in names]
            here = [each for each in infos if self._store(each) is store]
            store.expect((each.file, each.start, each.size_bytes) for each in here)

    def raw(self, name: str) -> bytearray:
        """The stored bytes of a tensor.

        Raises:
            InvalidCheckpoint: there is no such tensor.
            StorageError: the store refused or failed.
        """
        info = self.info(name)
        self._on_read(info.size_bytes)
        return self._store(info).read(info.file, info.start, info.size_bytes)

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
            return self._scalar(info).to(device, dtype)
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
        if info.form is None and target == stored and place.type == "cpu":
            return self._stored_rows(info, start, stop)
        result = torch.empty((stop - start, *info.shape[1:]), dtype=target, device=place)
        step = _rows_of_a_piece(info)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            _copy(self._stored_rows(info, first, last), result[first - start : last - start])
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
        step = _rows_of_a_piece(info)
        for start in range(0, info.shape[0], step):
            yield self._stored_rows(info, start, min(start + step, info.shape[0]))

    def _scalar(self, info: TensorInfo) -> Tensor:
        if info.form is None:
            return _decode(self.raw(info.name), info.dtype, ())
        return self._stored_rows(replace(info, shape=(1,)), 0, 1)[0]

    def _stored_rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows in the dtype that the tensor is read in."""
        if info.form is None:
            return self._rows_as(info, info.dtype, start, stop)
        factors = info.form.factors
        if info.form.dtype == MXFP4 and factors is not None:
            return self._unpacked_rows(info, factors, start, stop)
        values = self._rows_as(info, info.form.dtype, start, stop)
        if info.form.is_computed:
            values = values.float()
        if factors is not None:
            self._scale(values, factors, info.form.block, start)
        if info.form.low_rank is not None:
            self._add(values, info.form.low_rank, slice(start, stop))
        return values.to(TORCH_DTYPES[info.dtype])

    def _unpacked_rows(
        self, info: TensorInfo, exponents: TensorInfo, start: int, stop: int
    ) -> Tensor:
        """Matrices of experts that are stored in MXFP4, some output channels at a time."""
        _, inputs, outputs = info.shape
        blocks = inputs // BLOCK_NUMBERS
        step = max(1, PIECE_BYTES // max(1, _BYTES_PER_PACKED_NUMBER * inputs))
        # By output channels, as they are stored.
        packed = replace(info, shape=(info.shape[0] * outputs, blocks, BLOCK_BYTES))
        of_blocks = replace(exponents, shape=(info.shape[0] * outputs, blocks))
        result = torch.empty((stop - start, inputs, outputs), dtype=TORCH_DTYPES[info.dtype])
        for expert in range(start, stop):
            for first in range(0, outputs, step):
                last = min(first + step, outputs)
                span = (expert * outputs + first, expert * outputs + last)
                channels = mxfp4_channels(
                    self._rows_as(packed, "U8", *span), self._rows_as(of_blocks, "U8", *span)
                )
                result[expert - start, :, first:last].copy_(channels.T)
        return result

    def _scale(
        self, values: Tensor, factors: TensorInfo, block: tuple[int, int] | None, start: int
    ) -> None:
        """Multiply rows from `start` on by their factors, in place."""

        def read(first: int, last: int) -> Tensor:
            return self._rows_as(factors, factors.dtype, first, last).float()

        if block is None:
            one = replace(factors, shape=(1,))
            values.mul_(self._rows_as(one, factors.dtype, 0, 1).float())
            return
        high, stop = block[0], start + len(values)
        if values.dim() == 2:
            grid = read(start // high, -(-stop // high))
            scale_blocks(values, grid.view(len(grid), -1), block, start % high)
            return
        for matrix, grid in zip(values, read(start, stop), strict=True):
            scale_blocks(matrix, grid.view(len(grid), -1), block)

    def _add(self, values: Tensor, low_rank: LowRank, span: slice) -> None:
        """Add rows of a product of two matrices, in place."""
        key = (low_rank.down.name, low_rank.up.name)
        pair = self._pair  # Another thread may replace it at any time.
        if pair is None or pair[0] != key:
            down, up = (self._whole(low_rank.store, info) for info in (low_rank.down, low_rank.up))
            pair = self._pair = key, down, up
        _, down, up = pair
        turned = low_rank.transposed
        values.add_(low_rank_rows(down, up, low_rank.scale, span, turned=turned))

    def _store(self, info: TensorInfo) -> Readable:
        elsewhere = None if info.form is None else info.form.substitution
        return self._index.store if elsewhere is None else elsewhere.store

    def _rows_as(self, info: TensorInfo, dtype: str, start: int, stop: int) -> Tensor:
        """Rows as they are stored, in `dtype`."""
        row_bytes = _row_bytes(info)
        size = (stop - start) * row_bytes
        self._on_read(size)
        data = self._store(info).read(info.file, info.start + start * row_bytes, size)
        return _decode(data, dtype, (stop - start, *info.shape[1:]))

    def _whole(self, store: Readable, info: TensorInfo) -> Tensor:
        self._on_read(info.size_bytes)
        data = store.read(info.file, info.start, info.size_bytes)
        return _decode(data, info.dtype, info.shape).double()


def _copy(rows: Tensor, target: Tensor) -> None:
    """Convert rows to the target's dtype, on its device.

    A GPU converts them itself. They pass pinned memory, from which it copies while this thread
    reads on; torch keeps such memory until the copy is done, and uses it again.
    """
    if target.device.type != "cuda":
        target.copy_(rows)
        return
    step = max(1, PINNED_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].pin_memory()
        target[start : start + step].copy_(part, non_blocking=True)


def _row_bytes(info: TensorInfo) -> int:
    """Stored bytes of a row."""
    return info.size_bytes // info.shape[0] if info.shape[0] else 0


def _rows_of_a_piece(info: TensorInfo) -> int:
    """Rows that are converted together, counted in the widest form that they pass through.

    That is float32; with an adapter also the product in float64, and again in float32.
    """
    row_bytes = _row_bytes(info)
    if info.form is not None and info.form.is_computed and info.shape[0]:
        number = 4 if info.form.low_rank is None else 16
        row_bytes = number * info.parameters // info.shape[0]
    return max(1, PIECE_BYTES // max(1, row_bytes))


def _decode(data: bytearray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """View bytes as a tensor, which takes over the buffer: no copy."""
    if not data:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=TORCH_DTYPES[dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)
