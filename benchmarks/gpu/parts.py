"""The parts of the check, in their order, each with its limit of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import distillation, families, forward, large_shape, memory
from benchmarks.gpu.record import Keep

TOTAL_SECONDS = 480.0


@dataclass(frozen=True, slots=True)
class Part:
    """One of them.

    Attributes:
        measure: Given the device, an empty folder, and where findings go.
        limit_seconds: Its process is killed then, and what it had found is kept.
    """

    measure: Callable[[str, Path, Keep], None]
    limit_seconds: float


PARTS = {
    "families": Part(families.measure, 100.0),
    "memory": Part(memory.measure, 70.0),
    "forward": Part(forward.measure, 80.0),
    "large_shape": Part(large_shape.measure, 140.0),
    "distillation": Part(distillation.measure, 50.0),
}
