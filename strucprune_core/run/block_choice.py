"""Which blocks go whole, and what goes of the others: the two share one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.blocks import Step, choose_steps, steps_to_budget
from strucprune_core.method.allocation.threshold import Allocation
from strucprune_core.plan.blocks import block_budget, sites_apart
from strucprune_core.plan.sites import allocate_widths
from strucprune_core.run.artifacts import BlockLoss, Drop, Price
from strucprune_core.run.context import Job
from strucprune_core.run.energies import removed_damage
from strucprune_core.run.measured_site import MeasuredSite

# Blocks that are tried after the best number of them: a dear one may hide cheap ones behind it.
PATIENCE = 2


def dropped_blocks(job: Job) -> list[BlockLoss]:
    """The blocks of the steps that were measured, in order."""
    steps = (job.units.values(Drop(step)).removed for step in range(1, job.block_steps + 1))
    return [step for step in steps if step is not None]


def is_worth_it(job: Job, taken: Sequence[BlockLoss], more: BlockLoss) -> bool:
    """Whether one more block is to go, or at least to be tried."""
    steps = [*taken, more]
    if job.spec.pruning.removes_blocks_alone:
        budget = block_budget(job.config, job.spec.pruning)
        return steps_to_budget([each.parameters for each in steps], budget) == len(steps)
    best = BlockChoice(job).best(taken)
    return best is None or len(taken) - best <= PATIENCE


@dataclass(frozen=True, slots=True)
class Split:
    """What goes of the sites that stay, beside some blocks. Lists go by planned site."""

    widths: tuple[int, ...]
    price: float | None
    temperature: float | None
    predicted_damages: list[float]


class BlockChoice:
    """How the budget is shared between blocks and the sites of those that stay."""

    def __init__(self, job: Job) -> None:
        self._job, self._budget = job, block_budget(job.config, job.spec.pruning)
        self._energies = job.units.values(Price(1)).energies
        self._damages: list[NDArray[np.float64]] = [
            MeasuredSite(job, place.layer, place.site).damage() for place in job.planned
        ]

    def best(self, steps: Sequence[BlockLoss]) -> int | None:
        """How many of the steps are taken; None if the budget cannot be met with so few."""
        losses = accumulate(each.added for each in steps)
        measured = [Step(each.parameters, kl) for each, kl in zip(steps, losses, strict=True)]

        def loss_of_rest(count: int, budget: int) -> float | None:
            split = self._split(steps[:count], budget)
            return None if split is None else sum(split.predicted_damages)

        return choose_steps(measured, self._budget, loss_of_rest)

    def split(self, steps: Sequence[BlockLoss]) -> Split:
        """What goes of the sites beside these blocks."""
        found = self._split(steps, self._budget - sum(each.parameters for each in steps))
        assert found is not None  # noqa: S101 - `best` has tried it
        return found

    def _split(self, steps: Sequence[BlockLoss], budget: int) -> Split | None:
        job = self._job
        left = sites_apart(job.planned, [each.block for each in steps])
        numbers = [number for number, place in enumerate(job.planned) if place in left]
        total = sum(place.site.structures * place.site.parameters for place in left)
        widths = [0] * len(job.planned)
        for number in numbers:
            widths[number] = job.planned[number].site.structures
        allocation = Allocation(tuple(widths[number] for number in numbers), None)
        if budget > 0:
            if budget >= total:
                return None
            try:
                allocation = allocate_widths(
                    job.spec.pruning,
                    left,
                    [self._damages[number] for number in numbers],
                    [self._energies[number] for number in numbers],
                    budget / total,
                )
            except InvalidSpec:  # The floors of what is left allow less.
                return None
        predicted = [0.0] * len(job.planned)
        for number, width in zip(numbers, allocation.widths, strict=True):
            widths[number] = width
            damage = removed_damage(self._damages[number], width)
            predicted[number] = self._energies[number] * damage
        return Split(tuple(widths), allocation.price, allocation.temperature, predicted)
