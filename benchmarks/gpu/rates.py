"""Rates of large matrix products on a device: what phases are compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SIZE, WARM_UPS, RUNS = 8192, 2, 5


def wait_for(device: str) -> None:
    """Return once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def product_rates(device: str, size: int = SIZE) -> dict[str, float]:
    """Operations per second of a product of two square matrices, the best of some, by precision."""
    rates = {
        name: _rate(device, size, dtype)
        for name, dtype in (
            ("float64", torch.float64),
            ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
        )
    }
    if device == "cuda":
        with _tf32():
            rates["tf32"] = _rate(device, size, torch.float32)
    return rates


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rate(device: str, size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.mm(left, right)
    seconds = []
    for _ in range(WARM_UPS + RUNS):
        wait_for(device)
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds[WARM_UPS:])
