"""The arithmetic of tensors that are not read as they are stored.

A matrix W in FP8 with factors s stands for

    W'[i, j] = float32(W[i, j]) * float32(s[i // h, j // w])

where a block has h rows and w columns; blocks at the right and lower edge may be smaller. Both
conversions to float32 are exact, so the product is rounded once to float32, and once more to the
dtype that the tensor is read in. (In bfloat16 factors the product needs 8 + 4 bits, so the first
rounding is none.) This is what transformers computes (`Fp8Dequantize`, where blocks divide the
matrix) and compressed-tensors (`dequantize`).

An adapter adds float32(s B A) to float32(W'), and the sum is rounded to the dtype that the tensor
is read in. PEFT multiplies in float32; here it is float64, so that the sum does not depend on how
many rows are read at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
