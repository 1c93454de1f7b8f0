"""Rotary position embedding: the angles of `default`, `linear` and `llama3` scaling.

Same formulas as the models were trained with (Su et al. 2021; the llama3 bands as published with
Llama 3.1): tests compare with transformers' implementation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from strucprune_core.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Rotation speed of each pair of dimensions, radians per position, (head_dim / 2,) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    speeds = 1.0 / (rope.theta**exponents)
    if rope.type == "linear":
        return speeds / rope.factor
    if rope.type == "llama3":
        return _llama3(speeds, rope)
    return speeds


def _llama3(speeds: Tensor, rope: RopeConfig) -> Tensor:
    """Slow rotations are stretched by `factor`, fast ones kept, the band between blended."""
    context = rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / speeds
    slow = wavelengths > context / rope.low_freq_factor
    fast = wavelengths < context / rope.high_freq_factor
    blend = (context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * speeds / rope.factor + blend * speeds
    return torch.where(slow, speeds / rope.factor, torch.where(fast, speeds, blended))


def cosines_and_sines(speeds: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Rotation of each position, two (length x head_dim) float32 tensors (halves repeated).

    Computed by NumPy in float64: torch's float32 cosine was seen to give other bits in one process
    of forty on the same machine, and a job must end with the same bytes wherever it was resumed.
    """
    angles = torch.outer(torch.arange(length).float(), speeds.cpu())
    exact = torch.cat((angles, angles), dim=-1).double().numpy()
    cosines, sines = torch.from_numpy(np.cos(exact)), torch.from_numpy(np.sin(exact))
    return cosines.float().to(speeds.device), sines.float().to(speeds.device)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply the rotation to queries or keys, (..., length, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
