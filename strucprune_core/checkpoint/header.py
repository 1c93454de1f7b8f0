"""The safetensors header, checked before it is trusted. No torch.

A file is: 8 bytes little-endian header length, a JSON header, then the tensors' bytes. The header
maps names to {dtype, shape, data_offsets}, offsets counting from the end of the header. The format
allows no holes, so the offsets must tile the data region exactly; that also finds truncated files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strucprune_core.checkpoint.hostile_json import (
    FETCH_LFS,
    LFS_POINTER,
    parse_object,
    shown,
)
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.store import Readable

MAX_HEADER_BYTES = 16 * 2**20
LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
_MAX_DEPTH = 3  # The header, a tensor, its shape.
_MAX_DIMENSIONS = 8
_MAX_NAME_LENGTH = 512
_MAX_BYTES = 2**63 - 1

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

EXPONENTS = "F8_E8M0"
"""Powers of two from 2^-127 to 2^127, each stored as its exponent. Factors have this dtype."""

MXFP4 = "MXFP4"
"""Stands in `ScaledForm.dtype` for blocks of numbers of 4 bits, whose files call them U8."""

# Dtypes of the format that no prunable model has.
_PACKED_DTYPES = ("U16", "U32", "U64", "F4", "F6_E2M3", "F6_E3M2")

_DOWNLOAD = "Download the file itself; a web page comes from its viewer, or without permission."
# Recognised by their first bytes, which read as a header's length exceed its limit by far.
_OTHER_FILES = (
    (LFS_POINTER[:LENGTH_BYTES], "a Git LFS pointer", FETCH_LFS),
    (b"GGUF", "a GGUF file", "Use the model that it was made from, in safetensors."),
    (
        b"PK\x03\x04",
        "a pickled file of torch",
        "Name it pytorch_model.bin, and convert the model: strucprune convert MODEL OUTPUT.",
    ),
    (b"<!", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
)

Read = Callable[[int, int], bytes | bytearray]
"""Reads `length` bytes from offset `start` of one file."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """A product that is added to a matrix: scale * up @ down, or its transpose.

    Attributes:
        store: Where both lie.
        down: The first matrix that an input meets, (rank x inputs).
        up: The second, (outputs x rank).
        scale: The factor.
        transposed: Whether the matrix is stored as (inputs x outputs).
    """

    store: Readable
    down: TensorInfo
    up: TensorInfo
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    """Where a tensor lies that takes the place of the model's.

    Attributes:
        store: The store of its file.
        replaced: The tensor of the model, which is not read.
    """

    store: Readable
    replaced: TensorInfo


@dataclass(frozen=True, slots=True)
class ScaledForm:
    """How a tensor is stored that is read in another dtype.

    Attributes:
        dtype: The safetensors dtype of its file, or `MXFP4`.
        factors: The tensor of the factors that it is multiplied by (of MXFP4 their exponents); None
            if there are none.
        block: Rows and columns that share a factor; None if there is one for all.
        low_rank: What is added to it then.
        substitution: If it lies elsewhere than the model.
    """

    dtype: str
    factors: TensorInfo | None = None
    block: tuple[int, int] | None = None
    low_rank: LowRank | None = None
    substitution: Substitution | None = None

    @property
    def is_computed(self) -> bool:
        """Whether values pass through float32 on the way."""
        return self.factors is not None or self.low_rank is not None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        name: The tensor's name.
        dtype: The safetensors dtype that it is read in, e.g. "BF16".
        shape: Its dimensions; () is a scalar.
        file: The file that holds it.
        start: Offset of its first byte in the file.
        end: Offset after its last byte.
        form: How it is stored, if not as it is read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    form: ScaledForm | None = None

    @property
    def is_wide(self) -> bool:
        """Whether it is stored in 32 bits or more."""
        return (self.dtype if self.form is None else self.form.dtype) in ("F64", "F32")

    @property
    def size_bytes(self) -> int:
        """Stored bytes."""
        return self.end - self.start

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def read_bytes(self) -> int:
        """Bytes in the dtype that it is read in."""
        return self.parameters * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        tensors: By name, in file order.
        sha256: SHA-256 (hex) of the header's bytes.
    """

    tensors: dict[str, TensorInfo]
    sha256: str


def parse_header(
    read: Read, file_name: str, file_size: int, max_tensors: int | None = None
) -> Header:
    """Read and check the header of one safetensors file.

    Args:
        read: Reads a range of the file.
        file_name: For the messages and `TensorInfo.file`.
        file_size: Bytes of the whole file.
        max_tensors: How many tensors it may describe; counted before it is parsed.

    Raises:
        InvalidCheckpoint: something is wrong with the header or with the file's size.
    """
    header_bytes = _header_length(read, file_name, file_size)
    raw = bytes(read(LENGTH_BYTES, header_bytes))
    _check_count(raw, file_name, max_tensors)
    entries = parse_object(raw, f"the header of {file_name}", max_depth=_MAX_DEPTH)
    _check_metadata(entries.pop(METADATA_KEY, {}), file_name)
    data_start = LENGTH_BYTES + header_bytes
    tensors = [_tensor(name, entry, file_name, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.end))
    _check_tiling(tensors, file_name, data_start, file_size)
    return Header({info.name: info for info in tensors}, hashlib.sha256(raw).hexdigest())


def _header_length(read: Read, file_name: str, file_size: int) -> int:
    if file_size < LENGTH_BYTES:
        raise InvalidCheckpoint(
            f"{file_name} holds {file_size} bytes, too few for a safetensors file",
            remedy="Copy the file again.",
        )
    first = bytes(read(0, LENGTH_BYTES))
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        _refuse_other_files(first, file_name)
        raise InvalidCheckpoint(
            f"{file_name} claims a header of {length} bytes, over the limit of {MAX_HEADER_BYTES}; "
            f"it is damaged, or not a safetensors file",
            remedy="Copy the file again.",
        )
    if length > file_size - LENGTH_BYTES:
        raise InvalidCheckpoint(
            f"{file_name} is truncated: its header alone needs {LENGTH_BYTES + length} bytes, "
            f"the file has {file_size}",
            remedy="Copy the file again.",
        )
    return length


def _refuse_other_files(first: bytes, file_name: str) -> None:
    """Say what the file is: some other kinds often bear the name of a safetensors file."""
    for mark, what, remedy in _OTHER_FILES:
        if first.startswith(mark):
            raise InvalidCheckpoint(f"{file_name} is {what}, not a safetensors file", remedy=remedy)


def _check_count(raw: bytes, file_name: str, max_tensors: int | None) -> None:
    # Each tensor is an object; so are the metadata and the header itself.
    if max_tensors is not None and raw.count(b"{") > max_tensors + 2:
        raise InvalidCheckpoint(
            f"{file_name} describes more tensors than a model of this config.json can have",
            remedy="Check that the prefix holds one model with its own config.json.",
        )


def _check_metadata(metadata: Any, file_name: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidCheckpoint(f"{METADATA_KEY} of {file_name} is not a map of strings")


def _tensor(name: str, entry: Any, file_name: str, data_start: int) -> TensorInfo:
    """Check one header entry; `_check_tiling` compares it with the others."""
    what = f"tensor {shown(name)} in {file_name}"
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidCheckpoint(f"{what} has an empty, overlong or unprintable name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidCheckpoint(f"{what} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in _PACKED_DTYPES:
        raise InvalidCheckpoint(
            f"{what} has the dtype {dtype}, which only quantised models have",
            remedy="Prune the unquantised model, and quantise the result.",
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidCheckpoint(f"{what} has the unknown dtype {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise InvalidCheckpoint(
            f"{what} has the shape {shown(shape)}, not up to {_MAX_DIMENSIONS} sizes"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidCheckpoint(f"{what} has the data_offsets {shown(offsets)}")
    size_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if size_bytes != offsets[1] - offsets[0]:
        raise InvalidCheckpoint(
            f"{what} occupies {offsets[1] - offsets[0]} bytes, but {dtype} of shape {shape} "
            f"needs {shown(size_bytes)}"
        )
    start, end = data_start + offsets[0], data_start + offsets[1]
    return TensorInfo(name, dtype, tuple(shape), file_name, start, end)


def _are_sizes(values: Any) -> bool:
    """A list of integers in [0, 2^63). A bool, which Python counts as one, is none."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_BYTES for value in values
    )


def _check_tiling(
    tensors: list[TensorInfo], file_name: str, data_start: int, file_size: int
) -> None:
    """The tensors, sorted by offset, must cover the data region without holes or overlaps."""
    expected = data_start
    for info in tensors:
        if info.start != expected:
            relation = "overlaps the one before" if info.start < expected else "leaves a hole"
            raise InvalidCheckpoint(f"tensor {shown(info.name)} in {file_name} {relation}")
        expected = info.end
    if expected > file_size:
        raise InvalidCheckpoint(
            f"{file_name} is truncated: its header describes {expected} bytes, "
            f"the file has {file_size}",
            remedy="Copy the file again.",
        )
    if expected < file_size:
        raise InvalidCheckpoint(
            f"{file_name} is too long: its header describes {expected} bytes, "
            f"the file has {file_size}"
        )
