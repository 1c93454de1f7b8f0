"""What goes of sites where they share the budget with blocks or experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.threshold import Allocation
from strucprune_core.plan.sites import PlannedSite, allocate_widths
from strucprune_core.run.artifacts import Price
from strucprune_core.run.context import Job
from strucprune_core.run.energies import removed_damage
from strucprune_core.run.measured_site import MeasuredSite


@dataclass(frozen=True, slots=True)
class Split:
    """What goes of the sites that stay. Lists go by planned site."""

    widths: tuple[int, ...]
    price: float | None
    temperature: float | None
    predicted_damages: list[float]


class SiteSplit:
    """Shares what is left of a budget between sites, by their damage curves and energies."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._energies = job.units.values(Price(1)).energies
        self._damages: list[NDArray[np.float64]] = [
            MeasuredSite(job, place.layer, place.site).damage() for place in job.planned
        ]

    def of(self, left: Sequence[PlannedSite], budget: int) -> Split | None:
        """What goes of some sites; None if they cannot lose so much.

        Args:
            left: The sites; the others keep nothing.
            budget: Parameters that are to go, which may be negative.
        """
        planned = self._job.planned
        numbers = [number for number, place in enumerate(planned) if place in left]
        total = sum(planned[n].site.structures * planned[n].site.parameters for n in numbers)
        dense = tuple(planned[number].site.structures for number in numbers)
        allocation = Allocation(dense, None)
        if budget > 0:
            if budget >= total:
                return None
            try:
                allocation = allocate_widths(
                    self._job.spec.pruning,
                    [planned[number] for number in numbers],
                    [self._damages[number] for number in numbers],
                    [self._energies[number] for number in numbers],
                    budget / total,
                )
            except InvalidSpec:  # The floors of what is left allow less.
                return None
        widths, predicted = [0] * len(planned), [0.0] * len(planned)
        for number, width in zip(numbers, allocation.widths, strict=True):
            widths[number] = width
            damage = removed_damage(self._damages[number], width)
            predicted[number] = self._energies[number] * damage
        return Split(tuple(widths), allocation.price, allocation.temperature, predicted)
