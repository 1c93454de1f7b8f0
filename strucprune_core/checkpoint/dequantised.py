"""The arithmetic of tensors that are not read as they are stored.

A matrix W in FP8 with factors s stands for

    W'[i, j] = float32(W[i, j]) * float32(s[i // h, j // w])

where a block has h rows and w columns; blocks at the right and lower edge may be smaller. Both
conversions to float32 are exact, so the product is rounded once to float32, and once more to the
dtype that the tensor is read in. (In bfloat16 factors the product needs 8 + 4 bits, so the first
rounding is none.) This is what transformers computes (`Fp8Dequantize`, where blocks divide the
matrix) and compressed-tensors (`dequantize`).

In MXFP4 (gpt-oss), a byte holds two numbers of FP4: the lower four bits are the first. A number q
of a block whose stored exponent is e stands for

    float32(q) * 2^(e - 127),   q of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives,

which float32 and bfloat16 hold exactly as long as it is below 2^128; it is rounded to the dtype
that the tensor is read in. This is what transformers computes (`convert_moe_packed_tensors`), also
for e = 255, which the format reserves for NaN.

An adapter adds float32(s B A) to float32(W'), and the sum is rounded to the dtype that the tensor
is read in. PEFT multiplies in float32; here it is float64, so that the sum does not depend on how
many rows are read at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_OF_ONE = 127


def scale_blocks(values: Tensor, factors: Tensor, block: tuple[int, int], first: int = 0) -> None:
    """Multiply blocks of a matrix by their factors, in place.

    Args:
        values: Rows of the matrix, (n x columns) float32.
        factors: Those of the blocks that the rows touch, (blocks x blocks in a row) float32.
        block: Rows and columns of a block.
        first: The number of the first row within its block.
    """
    high, wide = block
    columns = values.shape[1]
    by_column = factors
    if factors.shape[1] > 1:
        by_column = factors.repeat_interleave(wide, dim=1)[:, :columns]
    if high == 1:
        values.mul_(by_column)
        return
    for number, row in enumerate(by_column):
        start, stop = number * high - first, (number + 1) * high - first
        values[max(0, start) : stop].mul_(row)


def mxfp4_channels(packed: Tensor, exponents: Tensor) -> Tensor:
    """Numbers that are stored in MXFP4, float32 (channels x numbers).

    Args:
        packed: Two numbers in each byte, (channels x blocks x bytes) uint8.
        exponents: Of each block, (channels x blocks) uint8.
    """
    byte = torch.arange(256)
    numbers = torch.tensor(_FP4, dtype=torch.float32)
    both = torch.stack((numbers[byte & 15], numbers[byte >> 4]), dim=1)
    values = both.index_select(0, packed.flatten().int())
    of_blocks = (exponents.int() - _EXPONENT_OF_ONE)[:, :, None]
    values.view(*exponents.shape, -1).ldexp_(of_blocks)
    return values.view(len(packed), -1)


def low_rank_rows(down: Tensor, up: Tensor, scale: float, span: slice, *, turned: bool) -> Tensor:
    """Rows of scale * up @ down, or of its transpose, float32.

    Args:
        down: (rank x inputs) float64.
        up: (outputs x rank) float64.
        scale: The factor.
        span: Which rows.
        turned: Whether those of the transpose.
    """
    product = down[:, span].T @ up.T if turned else up[span] @ down
    return product.mul_(scale).to(torch.float32)
