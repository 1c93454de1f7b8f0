"""Seconds of work in each phase of a job: what its finished units took, and were predicted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from strucprune_core.plan.graph import Unit, plain_name
from strucprune_core.report.document import PhaseTime
from strucprune_core.run.manifest import Manifest
from strucprune_core.run.progress import Phase


class Manifests(Protocol):
    """Knows which units are finished."""

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        ...


def phase_times(
    units: Iterable[Unit], finished: Manifests, predicted: Mapping[str, float]
) -> list[PhaseTime]:
    """The phases that took any time, in order.

    Args:
        units: Those that count.
        finished: The finished ones among them.
        predicted: Seconds of units by name.
    """
    seconds, expected = dict.fromkeys(Phase, 0.0), dict.fromkeys(Phase, 0.0)
    for unit in units:
        manifest = finished.manifest(unit.name)
        if manifest is not None:
            seconds[unit.phase] += manifest.seconds
            # A try takes what the same unit of the result takes.
            expected[unit.phase] += predicted.get(
                unit.name, predicted.get(plain_name(unit.name), 0.0)
            )
    return [
        PhaseTime(
            name=phase.value,
            seconds=round(spent, 3),
            predicted_seconds=round(expected[phase], 3),
        )
        for phase, spent in seconds.items()
        if spent > 0.0
    ]
