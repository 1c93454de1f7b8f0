"""Several tensors of a unit in one safetensors file, written and read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.checkpoint.writer import PlannedTensor, plan_shards, write_shard

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def save_bundle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file.

    Raises:
        NumericalFailure: a tensor is not finite.
    """
    planned = [
        PlannedTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    size_bytes = sum(tensor.size_bytes for tensor in planned)
    (shard,) = plan_shards(planned, max(1, size_bytes))
    write_shard(path, shard, tensors.__getitem__)


def bundle_names(path: Path) -> list[str]:
    """Names of a file's tensors."""
    with safe_open(path, framework="pt") as bundle:
        return sorted(bundle.keys())


def load_from_bundle(path: Path, name: str, device: torch.device) -> Tensor:
    """One tensor of a file."""
    with safe_open(path, framework="pt", device=str(device)) as bundle:
        tensor: Tensor = bundle.get_tensor(name)
    return tensor
