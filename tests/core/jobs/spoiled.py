"""Copies of a model in which some weights are wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = "model.safetensors"


def spoiled(
    model: Path, copy: Path, name: str, values: list[float], dtype: torch.dtype = torch.float32
) -> Path:
    """A copy of a model, one tensor of which is stored otherwise, and ends in these values."""
    shutil.copytree(model, copy)
    tensors = load_file(copy / FILE)
    tensor = tensors[name].to(dtype)
    tensor.view(-1)[-len(values) :] = torch.tensor(values, dtype=dtype)
    save_file({**tensors, name: tensor}, copy / FILE, metadata={"format": "pt"})
    return copy


def spoiled_all(model: Path, copy: Path, name: str, value: float) -> Path:
    """A copy of a model in which a tensor has one value everywhere."""
    shutil.copytree(model, copy)
    tensors = load_file(copy / FILE)
    same = torch.full_like(tensors[name], value)
    save_file({**tensors, name: same}, copy / FILE, metadata={"format": "pt"})
    return copy
