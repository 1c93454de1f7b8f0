"""Which blocks go whole, and what goes of the others: the two share one budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from strucprune_core.method.allocation.blocks import Step, choose_steps, steps_to_budget
from strucprune_core.plan.blocks import block_budget, sites_apart
from strucprune_core.run.artifacts import BlockLoss, Drop
from strucprune_core.run.context import Job
from strucprune_core.run.site_split import SiteSplit, Split

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


class BlockChoice:
    """How the budget is shared between blocks and the sites of those that stay."""

    def __init__(self, job: Job) -> None:
        self._job, self._budget = job, block_budget(job.config, job.spec.pruning)
        self._sites = SiteSplit(job)

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
        left = sites_apart(self._job.planned, [each.block for each in steps])
        return self._sites.of(left, budget)
