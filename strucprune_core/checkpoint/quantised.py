"""Models in FP8 or MXFP4: what config.json and headers say of them. No torch.

Two formats of FP8 are read, both of which store a matrix as numbers of 8 bits and, beside it, the
factors by which blocks of it are multiplied:

- fine-grained FP8 (`quant_method` "fp8": DeepSeek-V3, Qwen3-FP8): `NAME_scale_inv` (or, of older
  tools, `NAME_scale`) with a factor for each block of `weight_block_size`, or one for the matrix;
- compressed-tensors (`format` "float-quantized"): `NAME_scale` with one factor for the matrix, for
  each output channel, or for each block.

A factor may also be stored as its exponent alone (`scale_fmt` "ue8m0": a tensor in F8_E8M0).
gpt-oss in MXFP4 is described in `checkpoint.mxfp4`.

The arithmetic is in `checkpoint.dequantised`. Factors of activations and of the KV cache belong to
kernels that compute in FP8; a model in more bits has no use for them, and they are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from strucprune_core.checkpoint.header import (
    EXPONENTS,
    FLOAT_DTYPES,
    MXFP4,
    ScaledForm,
    TensorInfo,
)
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.mxfp4 import MODEL_TYPE, unpacked
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture

QUANTISATION = "quantization_config"
FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
_FACTOR_DTYPES = (*FLOAT_DTYPES, EXPONENTS)
OUTPUT_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Safetensors dtypes by the names that config.json and `output.dtype` have for them."""
DEFAULT_DTYPE = "bfloat16"
"""What quantised weights become."""

_SUFFIXES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = re.compile(r".*[._](input|output|activation|[qkv])_scale")
_MAX_BLOCK = 2**20
_FORMATS = ("float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a model is quantised.

    Attributes:
        name: Its name for people.
        blocks: Rows and columns of a block, where matrices have a factor for each; None if none do.
        channels: Whether they may have a factor for each row.
    """

    name: str
    blocks: tuple[int, int] | None = None
    channels: bool = False


def quantisation_of(config: Mapping[str, Any]) -> Quantisation | None:
    """How the model is quantised; None if it is not, or in a way that is refused elsewhere.

    Raises:
        InvalidCheckpoint: the section has a value that cannot be.
        UnsupportedArchitecture: FP8 is used in a way that is not read.
    """
    given = config.get(QUANTISATION)
    if not isinstance(given, dict):
        return None
    if given.get("quant_method") == "fp8":
        if given.get("expert_dtype", "fp8") != "fp8":
            raise _unread("expert_dtype", given["expert_dtype"])
        blocks = given.get("weight_block_size")
        return Quantisation("FP8", None if blocks is None else _block(blocks))
    if given.get("quant_method") == "compressed-tensors":
        return _compressed(given)
    if given.get("quant_method") == "mxfp4" and config.get("model_type") == MODEL_TYPE:
        return Quantisation(MXFP4)
    return None


def _compressed(given: Mapping[str, Any]) -> Quantisation | None:
    groups = given.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise InvalidCheckpoint(f"config_groups of {QUANTISATION} is not a map of objects")
    sparsity = given.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise _unread("sparsity_config", sparsity)
    if given.get("transform_config"):
        raise _unread("transform_config", given["transform_config"])
    blocks: set[tuple[int, int]] = set()
    channels = False
    for group in groups.values():
        weights = group.get("weights")
        if weights is None:
            continue
        form = group.get("format") or given.get("format")
        if not isinstance(weights, dict):
            raise InvalidCheckpoint(f"weights of {QUANTISATION} is not an object")
        if form not in _FORMATS or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            return None
        strategy = weights.get("strategy")
        if strategy == "block":
            blocks.add(_block(weights.get("block_structure")))
        elif strategy == "channel":
            channels = True
        elif strategy != "tensor":
            raise _unread("strategy", strategy)
    if len(blocks) > 1:
        raise _unread("block_structure", sorted(blocks))
    return Quantisation("compressed-tensors FP8", min(blocks, default=None), channels)


def _block(value: Any) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(size) is int and 0 < size <= _MAX_BLOCK for size in value)
    ):
        raise InvalidCheckpoint(
            f"a block of {QUANTISATION} is {shown(value)}, not numbers of rows and columns"
        )
    return value[0], value[1]


def _unread(key: str, value: Any) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"the model is quantised with {key} {shown(value)}, which is not read",
        field="model.uri",
        remedy="Prune the unquantised model, and quantise the result.",
    )


def dequantised(
    tensors: Mapping[str, TensorInfo], quantisation: Quantisation
) -> dict[str, TensorInfo]:
    """The tensors that the model has once it is dequantised, in bfloat16.

    Raises:
        InvalidCheckpoint: no matrix is quantised, or one has no factors, or they do not fit it.
    """
    if quantisation.name == MXFP4:
        return as_dtype(unpacked(tensors), DEFAULT_DTYPE)
    if not any(info.dtype in FP8_DTYPES for info in tensors.values()):
        raise InvalidCheckpoint(
            f"{QUANTISATION} of config.json says that the model is stored in FP8, but no tensor is",
            remedy="Remove the section if the model is unquantised, or use the config.json that "
            "was saved with these weights.",
        )
    grids = dict(_grids(tensors))
    factors = {grid.name for grid in grids.values()}
    result: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if name in factors or _OF_ACTIVATIONS.fullmatch(name):
            continue
        if info.dtype in FP8_DTYPES:
            if name not in grids:
                raise InvalidCheckpoint(
                    f"tensor {shown(name)} is stored in FP8 without factors ({_SUFFIXES[0]} or "
                    f"{_SUFFIXES[1]} after its name)",
                    remedy="Copy the model again; if its source has none, use the unquantised one.",
                )
            block = _block_of(info, grids[name], quantisation)
            form = ScaledForm(info.dtype, grids[name], block)
            result[name] = replace(info, form=form)
        else:
            result[name] = info
    return as_dtype(result, DEFAULT_DTYPE)


def _grids(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    """Names of matrices in FP8, and the tensors of their factors."""
    for name, info in tensors.items():
        if info.dtype in FP8_DTYPES:
            for suffix in _SUFFIXES:
                grid = tensors.get(name + suffix)
                if grid is not None:
                    yield name, grid
                    break


def _block_of(
    info: TensorInfo, grid: TensorInfo, quantisation: Quantisation
) -> tuple[int, int] | None:
    """Rows and columns that share a factor; None if all do.

    Raises:
        InvalidCheckpoint: there are other numbers of factors than config.json says.
    """
    what = f"tensor {shown(grid.name)} of dtype {grid.dtype} and shape {grid.shape}"
    if grid.dtype not in _FACTOR_DTYPES:
        raise InvalidCheckpoint(f"{what} cannot hold the factors of an FP8 matrix")
    if grid.parameters == 1:
        return None
    if len(info.shape) in (2, 3):
        *outer, rows, columns = info.shape
        if quantisation.channels and grid.shape in ((*outer, rows, 1), (*outer, rows)):
            return 1, max(1, columns)
        if quantisation.blocks is not None:
            high, wide = quantisation.blocks
            if grid.shape == (*outer, -(-rows // high), -(-columns // wide)):
                return quantisation.blocks
    raise InvalidCheckpoint(
        f"{what} does not fit {shown(info.name)} of shape {info.shape} by {QUANTISATION} of "
        "config.json",
        remedy="Use the config.json that was saved with these weights.",
    )


def as_dtype(tensors: Mapping[str, TensorInfo], dtype: str) -> dict[str, TensorInfo]:
    """The tensors, read in another dtype.

    Numbers that a model keeps in float32 beside narrower ones (the correction of a router's scores,
    say) are kept in it.

    Args:
        tensors: By name.
        dtype: A key of `OUTPUT_DTYPES`.
    """
    target = OUTPUT_DTYPES[dtype]
    sizes: dict[bool, int] = {True: 0, False: 0}
    for info in tensors.values():
        sizes[info.is_wide] += info.parameters
    mixed = sizes[False] >= sizes[True]
    return {
        name: info
        if info.dtype not in (*FLOAT_DTYPES, *FP8_DTYPES) or (mixed and info.is_wide)
        else replace(info, dtype=target, form=info.form or ScaledForm(info.dtype))
        for name, info in tensors.items()
    }


def config_as(config: Mapping[str, Any], dtype: str) -> tuple[dict[str, Any], bytes]:
    """config.json of the same model, unquantised and in this dtype: parsed, and its bytes."""
    changed = {key: value for key, value in config.items() if key != QUANTISATION}
    for key, part in changed.items():
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            changed[key] = _with_dtype(part, dtype)
    changed = _with_dtype(changed, dtype)
    return changed, json.dumps(changed, indent=2).encode()


def _with_dtype(section: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    key = "torch_dtype" if "torch_dtype" in section and "dtype" not in section else "dtype"
    return {**{k: v for k, v in section.items() if k != "torch_dtype"}, key: dtype}
