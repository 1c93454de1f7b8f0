"""Progress out, stop requests in: what a run and its caller exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Phase(StrEnum):
    """What a job is doing.

    A phase may come again: the dense model is evaluated before calibration and the pruned one at
    the end, files are written (`uploading`) between solves, and while one layer's statistics are
    stored another one's curve is computed. See `plan.graph` for what belongs to what.
    """

    INSPECTING = "inspecting"
    CALIBRATING = "calibrating"
    ALLOCATING = "allocating"
    SOLVING = "solving"
    EVALUATING = "evaluating"
    UPLOADING = "uploading"
    COMMITTING = "committing"


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress.

    Attributes:
        phase: The current phase.
        layers_done: Layers (or steps, where a phase has no layers) finished in this phase.
        layers_total: Layers (or steps) of this phase.
        fraction: Share of the whole job that is done, in [0, 1], never decreasing.
        eta_seconds: Estimated seconds left, or None while unknown.
        phases: Of each phase that the job has, steps that are finished, and all.
        unit: The unit that is computed now (see `plan.graph`), or None while none is.
    """

    phase: Phase
    layers_done: int
    layers_total: int
    fraction: float
    eta_seconds: float | None = None
    phases: Mapping[Phase, tuple[int, int]] = field(default_factory=dict)
    unit: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The wire form used in job records and events."""
        return {
            "phase": self.phase.value,
            "layers_done": self.layers_done,
            "layers_total": self.layers_total,
            "fraction": round(self.fraction, 4),
            "eta_seconds": None if self.eta_seconds is None else round(self.eta_seconds, 1),
            "phases": {phase.value: [*steps] for phase, steps in self.phases.items()},
            "unit": self.unit,
        }


@dataclass(frozen=True, slots=True)
class FinishedUnit:
    """A unit of work that this run has done.

    Attributes:
        name: See `plan.graph`; "publish" for the last step, which is no unit.
        kind: The same without the number: "curve" of "curve.3".
        began_at: Unix seconds.
        seconds: Time it took.
        host_peak_bytes: Peak of the process's anonymous memory meanwhile.
        device_peak_bytes: Peak of device allocations; None where the device is not measured.
    """

    name: str
    kind: str
    began_at: float
    seconds: float
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None


UnitSink = Callable[[FinishedUnit], None]
ProgressSink = Callable[[Progress], None]


class StopSignal(Protocol):
    """Asked at every safe point; raising `errors.Stopped` ends the run there."""

    def check(self) -> None:
        """Raise `errors.Stopped` if the run should stop now."""


class NeverStop:
    """A stop signal that never fires."""

    def check(self) -> None:
        """Do nothing."""


class AnyStop:
    """Several stop signals as one: the first that fires counts."""

    def __init__(self, *signals: StopSignal) -> None:
        self._signals = signals

    def check(self) -> None:
        """Raise what one of them raises."""
        for signal in self._signals:
            signal.check()


def ignore_unit(unit: FinishedUnit) -> None:
    """A sink for callers that do not count."""


def ignore_progress(progress: Progress) -> None:
    """A sink for callers that do not watch."""
