"""Measures how fast this process's device is, in about a second: see `plan.rates`.

Products of square matrices of rising sizes are timed in each precision, as long as one is quick
enough. A rate is the median of a few runs. With one thread on a CPU, time is that of the thread on
the processor, so that a busy machine does not look slow.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import cache

import torch

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.devices import (
    choose_device,
    device_name,
    matrix_products_in,
    solve_dtype,
)
from strucprune_core.plan.rates import DeviceRates, Precision

SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)
RUNS = 3
# What all runs of one size may take; larger sizes are left out.
MOST_SECONDS = 0.2
# A run repeats products that are shorter: clocks and launches are not what is measured.
_LEAST_SECONDS = 2e-3
# Of a matrix that multiplies one vector: larger than the caches of a processor, and of a GPU.
_MATRIX_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
_COPIED_BYTES = 1 << 26
_FIRST_GUESS = 1e9  # Operations per second, on the slow side: the first size is small.

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}


@cache
def measured_rates(device: torch.device, threads: int) -> DeviceRates:
    """The rates of a device in this process. Measured once.

    Args:
        device: The device.
        threads: Of torch in this process: rates differ with them.
    """
    clock = clock_of(device, threads)
    precisions: list[Precision] = ["float32", "float64"]
    if device.type == "cuda":  # Processors without the instructions take minutes for bfloat16.
        precisions += ["bfloat16", "tf32"]
    try:
        return DeviceRates(
            device=device_name(device),
            kind="cuda" if device.type == "cuda" else "cpu",
            threads=threads,
            products={each: _products(device, each, clock) for each in precisions},
            solves_in="float64" if solve_dtype(device) == torch.float64 else "float32",
            memory_bytes_per_second=_memory(device, clock),
            **({"copy_bytes_per_second": _copies(device, clock)} if device.type == "cuda" else {}),
        )
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def clock_of(device: torch.device, threads: int) -> Callable[[], float]:
    """Seconds: of the thread on a processor, where it is one; on a GPU, once all is done."""
    if device.type == "cpu":
        return time.thread_time if threads == 1 else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def _products(
    device: torch.device, precision: Precision, clock: Callable[[], float]
) -> dict[int, float]:
    found: dict[int, float] = {}
    rate = _FIRST_GUESS
    for size in SIZES:
        if found and (RUNS + 1) * 2 * size**3 / rate > MOST_SECONDS:
            break
        rate = found[size] = product_rate(device, precision, size, clock, rate)
    return found


def product_rate(
    device: torch.device,
    precision: Precision,
    size: int,
    clock: Callable[[], float],
    guess: float = _FIRST_GUESS,
) -> float:
    """Operations per second of a product of two square matrices: the median of a few runs.

    Args:
        device: Where.
        precision: In which they are multiplied.
        size: Their rows and columns.
        clock: Seconds; on a GPU, those at which all was done that it was asked for.
        guess: About what it will be, by which short products are repeated.
    """
    dtype = DTYPES.get(precision, torch.float32)
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    work = 2 * size**3
    repeats = max(1, round(_LEAST_SECONDS * guess / work))
    with matrix_products_in("tf32" if precision == "tf32" else "float32"):
        out = torch.mm(left, right)

        def run() -> None:
            for _ in range(repeats):
                torch.mm(left, right, out=out)

        return repeats * work / _median_seconds(run, clock)


def _memory(device: torch.device, clock: Callable[[], float]) -> float:
    """Bytes per second at which a matrix is read that multiplies one vector."""
    columns = 4096
    rows = _MATRIX_BYTES[device.type] // (4 * columns)
    matrix = torch.full((rows, columns), 0.5, device=device)
    vector = torch.ones(columns, device=device)
    seconds = _median_seconds(lambda: torch.mv(matrix, vector), clock)
    return matrix.numel() * matrix.element_size() / seconds


def _copies(device: torch.device, clock: Callable[[], float]) -> float:
    """Bytes per second at which numbers cross from the host's memory to a GPU."""
    there = torch.ones(_COPIED_BYTES // 4)
    return _COPIED_BYTES / _median_seconds(lambda: there.to(device), clock)


def _median_seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    run()
    found = []
    for _ in range(RUNS):
        began = clock()
        run()
        found.append(clock() - began)
    return max(statistics.median(found), 1e-9)  # A clock may stand still for so short a time.


def main() -> int:
    """Print the rates of a device as JSON; the exit status."""
    try:
        device = choose_device(sys.argv[1])
    except InvalidSpec as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(measured_rates(device, torch.get_num_threads()).model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
