"""`allocate`: which round's widths are used, and which blocks or experts go."""

from __future__ import annotations

from dataclasses import asdict, fields

import numpy as np

from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import AllocateValues, Price, PriceValues
from strucprune_core.run.block_choice import BlockChoice, dropped_blocks
from strucprune_core.run.context import Job
from strucprune_core.run.energies import round_divergence
from strucprune_core.run.shared_choice import best_number, kept_after
from strucprune_core.run.workspace import Draft


def allocate(job: Job, unit: Unit, draft: Draft) -> None:
    """Choose; writes no file."""
    pruning = job.spec.pruning
    if pruning.removes_blocks_alone:
        blocks = dropped_blocks(job)
        draft.record(AllocateValues((), None, None, [], [], round=1, kls=[], blocks=blocks))
    elif pruning.removes_blocks:
        draft.record(_beside_blocks(job))
    elif pruning.removes_experts:
        draft.record(_beside_experts(job))
    else:
        draft.record(_best_round(job))


def _best_round(job: Job) -> AllocateValues:
    """The round whose model diverges least from the dense one."""
    rounds = range(1, job.spec.pruning.rounds + 1)
    kls = [round_divergence(job, number) for number in rounds] if len(rounds) > 1 else []
    chosen = 1 + int(np.argmin(kls)) if kls else 1
    price = job.units.values(Price(chosen))
    given = {field.name: getattr(price, field.name) for field in fields(PriceValues)}
    return AllocateValues(**given, round=chosen, kls=kls)


def _beside_blocks(job: Job) -> AllocateValues:
    """The number of blocks with which the predicted loss is least, and widths of what is left."""
    choice, steps = BlockChoice(job), dropped_blocks(job)
    count = choice.best(steps)
    assert count is not None  # noqa: S101 - `plan.blocks.check_blocks`: enough blocks may go
    blocks = steps[:count]
    energies = job.units.values(Price(1)).energies
    split = choice.split(blocks)
    return AllocateValues(**asdict(split), energies=energies, round=1, kls=[], blocks=blocks)


def _beside_experts(job: Job) -> AllocateValues:
    """The number of experts with which the predicted loss is least, and widths beside it."""
    steps, loss, split = best_number(job)
    return AllocateValues(
        **asdict(split),
        energies=job.units.values(Price(1)).energies,
        round=1,
        kls=[],
        experts=kept_after(job, steps),
        expert_loss=loss,
    )
