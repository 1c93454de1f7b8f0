"""Rotary position embedding (Su et al. 2021), with every way in use to stretch the context.

    linear    speeds / factor
    dynamic   a larger theta once a sequence exceeds the original context ("NTK-aware")
    llama3    slow rotations stretched, fast ones kept, the band between blended (Llama 3.1)
    yarn      likewise by dimension, and larger queries and keys (Peng et al. 2023)
    longrope  a stretch for each pair of dimensions, with other values within and beyond the
              original context (Ding et al. 2024)

The formulas are those that the models were trained with; tests compare them with transformers.
"""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig, RopeConfig

# In config.json of a model in transformers' modules: the older key, and the newer one.
_LENGTH_DEPENDENT = re.compile(r'"(rope_type|type)":\s*"(dynamic|longrope)"')


def inverse_frequencies(rope: RopeConfig, dims: int, length: int) -> Tensor:
    """Rotation speed of each pair of dimensions, radians per position, (dims / 2,) float32.

    Args:
        rope: The rotation.
        dims: Dimensions of a head that are rotated.
        length: Tokens of the whole sequence; "dynamic" and "longrope" depend on it.
    """
    exponents = torch.arange(0, dims, 2, dtype=torch.int64).float() / dims
    speeds = 1.0 / (_theta(rope, dims, length) ** exponents)
    if rope.type == "linear":
        return speeds / rope.factor
    if rope.type == "llama3":
        return _llama3(speeds, rope)
    if rope.type == "yarn":
        return _yarn(speeds, rope, dims)
    if rope.type == "longrope":
        beyond = length > rope.original_max_position_embeddings
        return speeds / torch.tensor(rope.long_factors if beyond else rope.short_factors)
    return speeds


def angle_class(config: ModelConfig, length: int) -> int:
    """Sequences of one class are turned by the same angles, however far they are padded together.

    With "dynamic" and "longrope", angles depend on the length of the whole sequence.

    Args:
        config: The model.
        length: Tokens of the sequence.
    """
    if config.generic is not None:
        return length if _LENGTH_DEPENDENT.search(config.generic.config_json) else 0
    ropes = {block.rope for block in config.blocks if block.rope is not None}
    beyond = {
        rope.type
        for rope in ropes
        if rope.type in ("dynamic", "longrope") and length > rope.original_max_position_embeddings
    }
    return length if "dynamic" in beyond else len(beyond)


def _theta(rope: RopeConfig, dims: int, length: int) -> float:
    stretch = length / rope.original_max_position_embeddings
    if rope.type != "dynamic" or stretch <= 1.0:
        return rope.theta
    growth = rope.factor * stretch - (rope.factor - 1.0)
    return float(rope.theta * growth ** (dims / (dims - 2)))


def _yarn(speeds: Tensor, rope: RopeConfig, dims: int) -> Tensor:
    """Blended between the dimensions that turn `beta_fast` and `beta_slow` times per context."""

    def dimension(turns: float) -> float:
        context = rope.original_max_position_embeddings
        return dims * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    stretched = ((torch.arange(dims // 2).float() - low) / (high - low)).clamp(0, 1)
    return stretched * speeds / rope.factor + (1 - stretched) * speeds


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


def cosines_and_sines(speeds: Tensor, length: int, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rotation of each position, two (length x dims) float32 tensors (halves repeated).

    NumPy computes them in float64. torch's float32 cosine gave different bits in one process of
    forty on the same machine, and a job must end with the same bytes wherever it was resumed.
    """
    angles = torch.outer(torch.arange(length).float(), speeds.cpu())
    exact = torch.cat((angles, angles), dim=-1).double().numpy()
    cosines = torch.from_numpy(amplitude * np.cos(exact))
    sines = torch.from_numpy(amplitude * np.sin(exact))
    return cosines.float().to(speeds.device), sines.float().to(speeds.device)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply the rotation to queries or keys, (..., length, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
