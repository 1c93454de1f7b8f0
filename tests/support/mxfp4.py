"""gpt-oss as it is published: the matrices of its experts in MXFP4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import FP4_VALUES

IN_A_BLOCK = 32
SECTION = {
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    "quant_method": "mxfp4",
}
PROJECTIONS = ("gate_up_proj", "down_proj")


def packed(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks and scales of matrices that are stored as (experts x inputs x outputs).

    Each number becomes the nearest one that FP4 has, once its block is divided by the smallest
    power of two that leaves nothing above 6.
    """
    experts, inputs, outputs = matrices.shape
    grouped = matrices.float().transpose(1, 2)
    grouped = grouped.reshape(experts, outputs, inputs // IN_A_BLOCK, IN_A_BLOCK)
    exponents = torch.ceil(torch.log2(grouped.abs().amax(-1) / 6)).clamp(-127, 127)
    scaled = grouped / torch.exp2(exponents)[..., None]
    codes = (scaled[..., None] - torch.tensor(FP4_VALUES)).abs().argmin(-1).to(torch.uint8)
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return blocks.contiguous(), (exponents + 127).to(torch.uint8)


def in_mxfp4(model: Path, target: Path) -> Path:
    """A copy of a gpt-oss whose experts are quantised, with the rest in bfloat16."""
    shutil.copytree(model, target)
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(model / "model.safetensors").items():
        if name.endswith(PROJECTIONS):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(value)
        else:
            tensors[name] = value.to(torch.bfloat16)
    save_file(tensors, target / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16", "quantization_config": SECTION})
    )
    return target
