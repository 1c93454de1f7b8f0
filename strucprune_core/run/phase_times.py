"""Seconds of work in each phase of a job, from what its finished units took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import PhaseTime
from strucprune_core.run.manifest import Manifest
from strucprune_core.run.progress import Phase


class Manifests(Protocol):
    """Knows which units are finished."""

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        ...


def phase_times(units: Iterable[Unit], finished: Manifests) -> list[PhaseTime]:
    """The phases that took any time, in order.

    Args:
        units: Those that count.
        finished: The finished ones among them.
    """
    seconds = dict.fromkeys(Phase, 0.0)
    for unit in units:
        manifest = finished.manifest(unit.name)
        seconds[unit.phase] += manifest.seconds if manifest is not None else 0.0
    return [
        PhaseTime(name=phase.value, seconds=round(spent, 3))
        for phase, spent in seconds.items()
        if spent > 0.0
    ]
