"""Rates of large matrix products on a device: what phases are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from strucprune_core.evaluation.device_rates import DTYPES, clock_of, product_rate

SIZE = 8192


def wait_for(device: str) -> None:
    """Return once the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def product_rates(device: str, size: int = SIZE) -> dict[str, float]:
    """Operations per second of a product of two square matrices by precision; medians."""
    place = torch.device(device)
    rate = partial(product_rate, place, size=size, clock=clock_of(place, torch.get_num_threads()))
    rates: dict[str, float] = {name: rate(dtype=dtype) for name, dtype in DTYPES.items()}
    if place.type == "cuda":
        with _tf32():
            rates["tf32"] = rate(dtype=torch.float32)
    return rates


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
