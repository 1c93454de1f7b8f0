"""What the solver's routines send to the device and get back from it. No torch.

A matrix whose rows fit a panel is on the device: it is sent once, and results are fetched once. Any
other is in scratch and passes the device in row panels, mostly of its lower half. m columns of the
matrix, d rows of the weight matrix, k kept columns.
"""

from __future__ import annotations

import math

from strucprune_core.method.linalg.panels import BLOCK_CHANNELS, RESIDENT_STEP, Panels
from strucprune_core.method.linalg.transfers import Transferred

_FP32, _FP64 = 4, 8
_INDEX = 8  # Bytes of a structure's number.
# How often a Gram matrix's diagonal is read when it is finished: twice its energy, its deviations.
_DIAGONALS = 3


def gram_traffic(m: int, batches: int, panels: Panels) -> Transferred:
    """Sums over micro-batches, and the finished matrix in its file."""
    if panels.fits(m):
        return Transferred(to_host=_lower(m, RESIDENT_STEP) * _FP32)
    lower = _lower(m, panels.panel) * _FP32
    once_more = batches + 1  # Each micro-batch, and the division at the end.
    return Transferred(
        to_device=once_more * lower + _DIAGONALS * m * _FP32, to_host=once_more * lower
    )


def curve_traffic(m: int, d: int, panels: Panels, size: int, stored_bytes: int) -> Transferred:
    """A damage curve of groups of `size` columns."""
    result = Transferred(to_host=m // size * (_INDEX + _FP64))
    if panels.fits(m):
        return result.plus(Transferred(to_device=m * m * _FP32 + d * m * stored_bytes))
    p, lower = panels.panel, _lower(m, panels.panel)
    diagonals = 2 * m * _FP32
    filled = Transferred(to_device=lower * _FP32 + diagonals, to_host=lower * _FP64)
    mirrored = Transferred(to_device=lower * _FP64, to_host=lower * _FP64)
    parts = math.ceil(d / panels.rows(m))
    products = mirrored.times(parts + 1).plus(Transferred(to_device=d * m * _FP32))
    return Transferred.total(
        [
            result,
            filled,
            _inverse(m, p),
            mirrored,
            products,
            _removals(m, size, panels),
        ]
    )


def _inverse(m: int, p: int) -> Transferred:
    """The sweep of each block of rows reads and writes the lower half."""
    read = written = 0
    spans = [(start, min(start + p, m)) for start in range(0, m, p)]
    for first, last in spans:
        read += (last - first) * m
        written += (last - first) ** 2
        for start, stop in spans:
            if start != first:
                read += (stop - start) * stop
                written += (stop - start) * stop
                written += (last - first) * (stop - start) if start < first else 0
    return Transferred(to_device=read * _FP64, to_host=written * _FP64)


def _removals(m: int, size: int, panels: Panels) -> Transferred:
    """Rows of both matrices as their columns go, and the rest of both after each superblock."""
    read = written = 0
    left = m
    most = size if size > 1 else BLOCK_CHANNELS
    while left:
        gone = min(left, panels.capacity(left, min(most, left)))
        read += 2 * left * size + 2 * gone * left
        left -= gone
        rest = 2 * _lower(left, panels.step(left)) if left else 0
        read, written = read + rest, written + rest
    return Transferred(to_device=read * _FP64, to_host=written * _FP64)


def repair_traffic(m: int, d: int, k: int, panels: Panels, stored_bytes: int) -> Transferred:
    """A reconstruction; its solution stays on the device if it fits."""
    order = Transferred(to_device=m * _INDEX)
    if panels.fits(m):
        return order.plus(Transferred(to_device=m * m * _FP32 + d * m * stored_bytes))
    p = panels.panel
    passes = math.ceil(d / panels.rows(m))
    read = (m + _lower(k, panels.step(k)) + d * m + passes * k * m) * _FP32
    written = 0
    if not panels.fits(k):
        factor = _lower(k, p)
        before = sum(_lower(start, p) for start in range(0, k, p))
        read += (before + 2 * passes * factor) * _FP64
        written += factor * _FP64 + d * k * _FP64
    return order.plus(Transferred(to_device=read, to_host=written))


def error_traffic(
    m: int, d: int, k: int, tokens: int, panels: Panels, stored_bytes: int
) -> Transferred:
    """The error on held-out tokens."""
    if panels.fits(m):
        return Transferred(to_device=tokens * m * _FP32 + d * m * stored_bytes)
    pruned = 0 if panels.fits(k) else d * k
    passes = math.ceil(d / panels.rows(m))
    return Transferred(to_device=(d * m + pruned + passes * tokens * (m + k)) * _FP32)


def _lower(m: int, step: int) -> int:
    """Numbers of a lower half in panels of so many rows."""
    return sum((min(start + step, m) - start) * min(start + step, m) for start in range(0, m, step))
