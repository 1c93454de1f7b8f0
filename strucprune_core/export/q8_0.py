"""Q8_0, the format of llama.cpp with 8 bits for a weight.

A row is divided into blocks of 32 weights x_i. A block is stored in 34 bytes, its scale first, as
float16, then 32 integers:

    d   = max |x_i| / 127                  in float32
    q_i = round(x_i * (1 / d))             in float32, halves away from zero; 0 if 1 / d is infinite
    scale = float16(d)

and is read as q_i * scale. Source: `quantize_row_q8_0_ref` of ggml (ggml-quants.c). Tests compare
the bytes with those of `gguf.quants`, ggml's own Python package.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.export.gguf_layout import Q8_0_BLOCK as BLOCK
from strucprune_core.export.gguf_layout import Q8_0_BLOCK_BYTES as BLOCK_BYTES

_HIGHEST = 127.0
# Weights that are converted at a time: bounds the memory beside the values and the result.
_CHUNK_ELEMENTS = 2**20


def quantise(values: Tensor) -> Tensor:
    """Rows in Q8_0.

    Args:
        values: (rows x columns), of any float dtype; columns are a multiple of 32.

    Returns:
        (rows x columns / 32 * 34) uint8.

    Raises:
        NumericalFailure: a scale is not finite in float16.
    """
    rows, columns = values.shape
    stored = torch.empty(rows, columns // BLOCK * BLOCK_BYTES, dtype=torch.uint8)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        stored[start : start + step] = _quantised(values[start : start + step])
    return stored


def dequantise(stored: Tensor) -> Tensor:
    """What is stored as `quantise` returns it: (rows x columns) float32."""
    rows, size = stored.shape
    values = torch.empty(rows, size // BLOCK_BYTES * BLOCK)
    step = max(1, _CHUNK_ELEMENTS // values.shape[1])
    for start in range(0, rows, step):
        blocks = stored[start : start + step].reshape(-1, BLOCK_BYTES)
        scales = blocks[:, :2].contiguous().view(torch.float16).float()
        numbers = blocks[:, 2:].contiguous().view(torch.int8).float()
        values[start : start + step] = (numbers * scales).reshape(-1, values.shape[1])
    return values


def _quantised(values: Tensor) -> Tensor:
    blocks = values.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / _HIGHEST
    narrow = scales.half()
    if not torch.isfinite(narrow).all():
        raise NumericalFailure("the scale of a block of weights is not finite in float16")
    inverse = 1.0 / scales
    inverse = torch.where(torch.isfinite(inverse), inverse, 0.0)
    numbers = _rounded(blocks * inverse).to(torch.int8)
    bytes_of_blocks = torch.cat([narrow.view(torch.uint8), numbers.view(torch.uint8)], dim=1)
    return bytes_of_blocks.reshape(len(values), -1)


def _rounded(values: Tensor) -> Tensor:
    """Rounded to integers, halves away from zero; torch's own `round` gives even numbers."""
    sizes = values.abs()
    whole = sizes.floor()
    return torch.copysign(whole + (sizes - whole >= 0.5), values)
