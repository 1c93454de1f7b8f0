"""Rates of a device that nobody measured."""

from __future__ import annotations

from strucprune_core.plan.rates import DeviceRates

RATES = DeviceRates(
    device="a processor",
    kind="cpu",
    threads=1,
    products={"float32": {128: 4e9, 1024: 8e9}, "float64": {128: 2e9, 1024: 4e9}},
    memory_bytes_per_second=1e9,
)
