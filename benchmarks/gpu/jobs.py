"""Jobs on models with random weights, and what they took: kept unit by unit."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.phase_limits import PhaseLimits
from benchmarks.gpu.record import Keep
from benchmarks.random_model import save_random_model
from benchmarks.speed import PHASES
from strucprune_core import JobSpec, prune
from strucprune_core.errors import Stopped
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.graph import build_graph
from strucprune_core.plan.sites import energy_of
from strucprune_core.plan.work import unit_flops
from strucprune_core.report.document import Report
from strucprune_core.run.device_memory import FREE_SHARE, free_bytes
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.spec import is_gpu
from strucprune_core.storage.local import LocalStore

NO_LIMIT_SECONDS = float("inf")
_PHASE_OF = {kind: phase for phase, kinds in PHASES.items() for kind in kinds}


@dataclass(frozen=True, slots=True)
class Text:
    """The calibration text of a job."""

    samples: int
    sequence_length: int

    @property
    def words(self) -> int:
        """Words that are enough for it, and for an evaluation on as much."""
        return (self.samples + 1) * self.sequence_length


def make_model(
    folder: Path, raw: dict[str, Any], text: Text, device: str, **more: Any
) -> tuple[Path, Path]:
    """A model with random weights and a text that it can read: their paths."""
    made = save_random_model(folder / "model", raw, words=text.words, device=device, **more)
    return folder / "model", made


def job(
    model: tuple[Path, Path], root: Path, text: Text, device: str, **sections: dict[str, Any]
) -> JobSpec:
    """Prune 30 % of a model's FFN channels; `sections` add to the specification's.

    A GPU's limit is what is free there now, as a job takes it that names none, and its precision is
    what `auto` comes to, since the models are stored in bfloat16: so its plan is known before it
    runs.
    """
    path, words = model
    free = free_bytes(torch.device(device))
    limit = None if free is None else int(FREE_SHARE * free)
    specification: dict[str, Any] = {
        "model": {"uri": str(path)},
        "output": {"uri_prefix": str(root / "out")},
        "pruning": {"sparsity": 0.3},
        "calibration": {
            "uri": str(words),
            "samples": text.samples,
            "sequence_length": text.sequence_length,
        },
        "runtime": {
            "device": device,
            "device_memory_bytes": limit,
            "precision": "bfloat16" if is_gpu(device) else "auto",
        },
    }
    for name, section in sections.items():
        specification[name] = {**specification.get(name, {}), **section}
    return JobSpec.model_validate(specification)


class Units:
    """What the finished units of a job took. Each is kept at once."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._units: Counter[str] = Counter()
        self._peaks: dict[str, int] = {}
        self.names: list[str] = []

    def add(self, unit: FinishedUnit) -> None:
        """Count a unit."""
        phase = _PHASE_OF.get(unit.kind, unit.kind)
        self.names.append(unit.name)
        self._seconds[phase] += unit.seconds
        self._units[phase] += 1
        if unit.device_peak_bytes is not None:
            self._peaks[phase] = max(self._peaks.get(phase, 0), unit.device_peak_bytes)
        self._keep(self.found)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase."""
        return dict(self._seconds)

    @property
    def found(self) -> dict[str, Any]:
        """All of it."""
        return {
            "seconds_by_phase": {name: round(spent, 3) for name, spent in self._seconds.items()},
            "units_by_phase": dict(self._units),
            "device_peak_bytes_by_phase": dict(self._peaks),
        }


def run(
    spec: JobSpec, root: Path, units: Units, phase_limit_seconds: float = NO_LIMIT_SECONDS
) -> Report | str:
    """Run a job: its report, or why it was stopped.

    Raises:
        StrucPruneError: it failed.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)  # An earlier job may have lowered it.
    limits = PhaseLimits(phase_limit_seconds)
    try:
        return prune(
            spec,
            workspace=LocalStore(root / "workspace"),
            scratch=root / "scratch",
            progress=limits.progress,
            stop=limits,
            finished=units.add,
        )
    except Stopped as stopped:
        return stopped.message


def planned_flops(spec: JobSpec, config: ModelConfig, panels: Panels) -> dict[str, int]:
    """Planned operations of each unit of a job that only prunes, by the unit's name."""
    graph = build_graph(
        layers=config.layers,
        shards=[range(config.layers)],
        energy=energy_of(spec.pruning),
        evaluate=spec.evaluation is not None,
    )
    planned = unit_flops(graph, spec, config, panels)
    return {name: sum(purposes.values()) for name, purposes in planned.items()}


def phase_of(unit: str) -> str:
    """The phase that a unit's time counts towards, by the unit's name."""
    kind = unit.partition(".")[0]
    return _PHASE_OF.get(kind, kind)
