"""gpt-oss in MXFP4: which tensors it has once it is dequantised. No torch.

A published gpt-oss stores the matrices of all experts of a layer in two tensors of bytes:

- `NAME_blocks`, (experts x outputs x blocks x 16): a block is 32 consecutive numbers of an output
  channel, with two numbers of 4 bits in a byte;
- `NAME_scales`, (experts x outputs x blocks): the exponent of each block, plus 127.

Unquantised it has one tensor `NAME` in their place, (experts x inputs x outputs), with 32 inputs
for each block. The arithmetic is in `checkpoint.dequantised`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from strucprune_core.checkpoint.header import MXFP4, ScaledForm, TensorInfo
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint

MODEL_TYPE = "gpt_oss"
"""The architecture whose checkpoints are stored like this."""

BLOCK_BYTES = 16
BLOCK_NUMBERS = 2 * BLOCK_BYTES

_BLOCKS, _SCALES = "_blocks", "_scales"
_DIMENSIONS = 4
_COPY = "Copy the model again, or use the unquantised one."


def unpacked(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of the unquantised model. Those in MXFP4 are read in bfloat16.

    Raises:
        InvalidCheckpoint: no matrix is stored in MXFP4, or one is incomplete or malformed.
    """
    if not any(name.endswith(_BLOCKS) for name in tensors):
        raise InvalidCheckpoint(
            f"config.json says that the model is stored in MXFP4, but no tensor is (none ends with "
            f"{_BLOCKS})",
            remedy="Remove quantization_config if the model is unquantised, or use the config.json "
            "that was saved with these weights.",
        )
    result: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if name.endswith(_BLOCKS):
            matrix = name.removesuffix(_BLOCKS)
            if matrix in tensors:
                raise InvalidCheckpoint(
                    f"{shown(matrix)} is stored twice, in MXFP4 and unquantised", remedy=_COPY
                )
            result[matrix] = _matrix(matrix, info, _partner(tensors, matrix + _SCALES, info))
        elif name.endswith(_SCALES):
            _partner(tensors, name.removesuffix(_SCALES) + _BLOCKS, info)
        else:
            result[name] = info
    return result


def _partner(tensors: Mapping[str, TensorInfo], name: str, of: TensorInfo) -> TensorInfo:
    if name not in tensors:
        what = name.rpartition("_")[2]
        raise InvalidCheckpoint(
            f"tensor {shown(of.name)} is stored without its {what} ({shown(name)})", remedy=_COPY
        )
    return tensors[name]


def _matrix(name: str, blocks: TensorInfo, scales: TensorInfo) -> TensorInfo:
    fits = (
        (blocks.dtype, scales.dtype) == ("U8", "U8")
        and len(blocks.shape) == _DIMENSIONS
        and blocks.shape == (*scales.shape, BLOCK_BYTES)
    )
    if not fits:
        raise InvalidCheckpoint(
            f"tensors {shown(blocks.name)} of dtype {blocks.dtype} and shape {blocks.shape} and "
            f"{shown(scales.name)} of dtype {scales.dtype} and shape {scales.shape} do not fit: "
            f"MXFP4 has {BLOCK_BYTES} bytes (U8) and one scale (U8) for each block",
            remedy=_COPY,
        )
    experts, outputs, in_a_channel, _ = blocks.shape
    return replace(
        blocks,
        name=name,
        dtype="BF16",
        shape=(experts, BLOCK_NUMBERS * in_a_channel, outputs),
        form=ScaledForm(MXFP4, scales),
    )
