"""RMSNorm (with the weight, or one plus the weight) and LayerNorm, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from strucprune_core.models.config import NormConfig


def normalise(norm: NormConfig, x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Normalise the last dimension of x with the weights `name`.weight (and `name`.bias).

    Returns:
        float32, whatever the dtype of x.
    """
    x, weight = x.float(), weights[f"{name}.weight"]
    if norm.kind == "layer":
        return functional.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"], norm.eps)
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return (1.0 + weight) * scaled if norm.kind == "rms_plus_one" else weight * scaled
