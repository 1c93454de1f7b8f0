"""One step of distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Text, Units, job, make_model, run
from benchmarks.gpu.record import Keep
from benchmarks.gpu.shapes import SMOLLM2, raw_of
from strucprune_core.report.document import Report


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    raw: dict[str, Any] = field(default_factory=lambda: raw_of(SMOLLM2, 6))
    text: Text = field(default_factory=lambda: Text(32, 512))
    batch_sequences: int = 4
    phase_limit_seconds: float = 40.0


def measure(device: str, folder: Path, keep: Keep, settings: Settings = Settings()) -> None:
    """Prune, with a step of training."""
    model = make_model(folder, settings.raw, settings.text, device)
    distill = {"steps": 1, "batch_sequences": settings.batch_sequences}
    spec = job(model, folder / "job", settings.text, device, pruning={"distill": distill})
    about = {
        "layers": settings.raw["num_hidden_layers"],
        "tokens_of_step": settings.batch_sequences * settings.text.sequence_length,
    }
    units = Units(lambda found: keep({**about, **found}))
    report = run(spec, folder / "job", units, settings.phase_limit_seconds)
    if not isinstance(report, Report):
        keep({**about, **units.found, "stopped": report})
        return
    assert report.distillation is not None  # It was asked for.
    keep({**about, **units.found, "distillation": report.distillation.model_dump()})
