"""Whether a GPU may round the operands of float32 matrix products to 10 bits (TF32)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tf32_products(*, allowed: bool) -> Iterator[None]:
    """Inside, it may or may not, whatever was set before."""
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32 = before
