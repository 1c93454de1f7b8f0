"""How precise numbers are on the device. No torch: planner and execution share it.

    float32    everything
    tf32       float32, whose matrix products a GPU computes from operands rounded to 10 bits
    bfloat16   operands of a layer's matrix products are bfloat16, and so are matrices at rest

Products are summed in float32 everywhere. Norms, the softmax, rotary positions, the residual
stream, routing, logits, losses and statistics are float32 in all of them.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import layer_tensors

Precision = Literal["float32", "tf32", "bfloat16"]

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
_MATRIX = 2  # Dimensions.
_EXPERT = re.compile(r"experts?[._]")


def operand_bytes(precision: Precision) -> int:
    """Bytes of an operand of a layer's matrix products: of a weight, or of an activation."""
    return BFLOAT16_BYTES if precision == "bfloat16" else FLOAT32_BYTES


def is_operand(config: ModelConfig, layer: int, role: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a layer is a matrix that may be bfloat16 on the device.

    Routers of families that are written out are not: rounding would change the choice of experts.
    """
    if len(shape) < _MATRIX:
        return False
    block = config.blocks[layer]
    if block.generic is None:
        return role != f"{block.names.router}.weight"
    return role.endswith(".weight") or _EXPERT.search(role) is not None


def layer_weights_bytes(config: ModelConfig, layer: int, operand: int = FLOAT32_BYTES) -> int:
    """Bytes of a whole decoder layer on the device.

    Args:
        config: The model.
        layer: Which layer.
        operand: Bytes of an operand; see `operand_bytes`.
    """
    return sum(
        math.prod(shape) * (operand if is_operand(config, layer, role, shape) else FLOAT32_BYTES)
        for role, shape in layer_tensors(config, layer).items()
    )
