"""Rates of large matrix products on a device: what phases are compared with."""

from __future__ import annotations

import torch

from strucprune_core.evaluation.device_rates import clock_of, product_rate
from strucprune_core.plan.rates import Precision

SIZE = 8192


def wait_for(device: str) -> None:
    """Return once the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def product_rates(device: str, size: int = SIZE) -> dict[str, float]:
    """Operations per second of a product of two square matrices by precision; medians."""
    place = torch.device(device)
    clock = clock_of(place, torch.get_num_threads())
    precisions: list[Precision] = ["float64", "float32", "bfloat16"]
    if place.type == "cuda":
        precisions.append("tf32")
    return {name: product_rate(place, name, size, clock) for name in precisions}
