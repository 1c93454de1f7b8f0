"""The parts of the check, in their order, each with its limit of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import distillation, families, forward, large_shape, memory
from benchmarks.gpu.record import Keep, Record

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


def run_part(name: str, device: str, folder: Path, record: Record) -> None:
    """Run a part in this process, and record what it finds, or why it fails.

    Raises:
        Exception: it failed.
    """

    def keep(found: dict[str, Any]) -> None:
        record.update(name, found=found)

    try:
        PARTS[name].measure(device, folder, keep)
    except Exception as error:
        record.update(name, error=f"{type(error).__name__}: {error}")
        raise


PARTS = {
    "families": Part(families.measure, 100.0),
    "memory": Part(memory.measure, 80.0),
    "forward": Part(forward.measure, 80.0),
    "large_shape": Part(large_shape.measure, 140.0),
    "distillation": Part(distillation.measure, 50.0),
}
