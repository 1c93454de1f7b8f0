"""Peak memory on the device, predicted and measured: whole jobs of some shapes and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.jobs import Text, Units, job, make_model, run
from benchmarks.gpu.record import Keep
from benchmarks.gpu.shapes import SMOLLM2, raw_of
from strucprune_core.errors import StrucPruneError
from strucprune_core.models.families import parse_config
from strucprune_core.plan.pieces import plan_job
from strucprune_core.report.document import Report
from strucprune_core.spec import JobSpec

AMPLE_BYTES = 2**50
BAR = 0.10
"""How far the measured peak may be from the predicted one, relative to the measured one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, and the limits that it is pruned under."""

    name: str
    raw: dict[str, Any]
    shares: Sequence[float | None] = (None, 0.6)
    """Limits, as shares of the peak with ample memory; None: ample memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is tried. A peak does not depend on the number of layers."""

    shapes: Sequence[Shape] = (
        Shape(SMOLLM2, raw_of(SMOLLM2, 2)),
        Shape("opt-1.3b", raw_of("opt-1.3b", 2)),
        Shape("llama-7b", raw_of("llama-7b", 1)),
    )
    text: Text = field(default_factory=lambda: Text(16, 512))


def measure(device: str, folder: Path, keep: Keep, settings: Settings = Settings()) -> None:
    """Run the jobs one after the other."""
    rows: list[dict[str, Any]] = []
    for shape in settings.shapes:
        root = folder / shape.name
        model = make_model(root, shape.raw, settings.text, device)
        for number, share in enumerate(shape.shares):
            row: dict[str, Any] = {
                "shape": shape.name,
                "layers": parse_config(shape.raw).layers,
                "share_of_peak_allowed": share,
            }
            try:
                row |= _row(shape, model, root / str(number), device, share, settings)
            except (StrucPruneError, torch.OutOfMemoryError) as error:
                row |= {"error": str(error), "within_bar": False}
            rows.append(row)
            keep({"bar": BAR, "rows": rows})


def _row(
    shape: Shape,
    model: tuple[Path, Path],
    root: Path,
    device: str,
    share: float | None,
    settings: Settings,
) -> dict[str, Any]:
    config = parse_config(shape.raw)

    def limited(limit: int) -> JobSpec:
        runtime = {"device_memory_bytes": limit}
        return job(model, root, settings.text, device, runtime=runtime)

    # Ample memory is a limit too: with it pieces are the largest, and a CPU counts its tensors.
    limit, spec = AMPLE_BYTES, limited(AMPLE_BYTES)
    if share is not None:
        limit = int(share * plan_job(spec, config).device_peak_bytes)
        spec = limited(limit)
    plan = plan_job(spec, config)
    units = Units(lambda found: None)
    report = run(spec, root, units)
    assert isinstance(report, Report)  # Nothing stops it.
    # Of a CPU the report says 0, as tensors are part of the process there.
    predicted = plan.device_peak_bytes
    measured = report.memory.device_peak_bytes.measured
    assert measured is not None  # CUDA counts, and a limit makes a CPU count.
    return {
        "limit_bytes": None if share is None else limit,
        "largest_step": max(plan.device_terms, key=plan.device_terms.__getitem__),
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "predicted_over_measured": predicted / measured,
        "within_bar": abs(predicted / measured - 1.0) <= BAR,
        "measured_bytes_by_phase": units.found["device_peak_bytes_by_phase"],
    }
