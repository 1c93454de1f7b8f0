"""Models stored in FP8 as the tools that people use store them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Scheme = Literal["fine-grained", "tensor", "channel", "block"]
HIGHEST = 448.0
"""The largest number of float8_e4m3fn."""


def quantise(matrix: Tensor, block: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix in FP8, and the factor of each block, so that its largest number is HIGHEST."""
    high, wide = block
    rows, columns = matrix.shape
    factors = torch.empty(-(-rows // high), -(-columns // wide), dtype=dtype)
    stored = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            at = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
            factors[i, j] = matrix[at].abs().max().float() / HIGHEST
            scaled = matrix[at].float() / factors[i, j].float()
            stored[at] = scaled.clamp(-HIGHEST, HIGHEST).to(torch.float8_e4m3fn)
    return stored, factors


def in_fp8(
    model: Path,
    target: Path,
    scheme: Scheme,
    block: tuple[int, int] = (48, 40),
    factors: torch.dtype = torch.float32,
) -> Path:
    """A copy of a bfloat16 model whose linear layers are quantised."""
    shutil.copytree(model, target)
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(model / "model.safetensors").items():
        value = value.to(torch.bfloat16)
        if value.dim() != 2 or "layers." not in name:
            tensors[name] = value
            continue
        sizes = {"tensor": tuple(value.shape), "channel": (1, value.shape[1])}
        stored, grid = quantise(value, sizes.get(scheme, block), factors)
        tensors[name] = stored
        suffix = "_scale_inv" if scheme == "fine-grained" else "_scale"
        tensors[name + suffix] = grid.reshape(1) if scheme == "tensor" else grid
    save_file(tensors, target / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config.pop("torch_dtype", None)
    section = _section(scheme, block)
    (target / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16", "quantization_config": section})
    )
    return target


def _section(scheme: Scheme, block: tuple[int, int]) -> dict[str, Any]:
    if scheme == "fine-grained":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
        }
    weights: dict[str, Any] = {
        "num_bits": 8,
        "type": "float",
        "strategy": scheme,
        "symmetric": True,
        "dynamic": False,
    }
    if scheme == "block":
        weights["block_structure"] = list(block)
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
