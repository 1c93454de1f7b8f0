"""`drop.k`: which block goes next, in the model without those before it."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.method.allocation.blocks import next_block
from strucprune_core.plan.blocks import REMEASURED_BLOCKS, one_of_each_stays
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.artifacts import BlockLoss, BlockProbe, Capture, Drop, DropValues
from strucprune_core.run.block_choice import is_worth_it
from strucprune_core.run.block_variants import divergences_without
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def drop(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure again the blocks that were cheapest last, and choose one; writes no file."""
    before = [job.units.values(Drop(step)) for step in range(1, unit.index)]
    taken = [values.removed for values in before if values.removed is not None]
    known = before[-1].losses if before else _of_dense_model(job)
    gone = [each.block for each in taken]
    possible = [each for each in known if one_of_each_stays(job.config, gone, each.block)]
    if len(taken) < len(before) or not possible:
        draft.record(DropValues(None, known))
        return
    cheapest = sorted(possible, key=_price)[:REMEASURED_BLOCKS]
    if taken:  # Those of the dense model are measured already.
        cheapest = _measured_again(job, taken, cheapest)
    losses, sizes = [each.added for each in cheapest], [each.parameters for each in cheapest]
    chosen = cheapest[next_block(losses, sizes)]
    if not is_worth_it(job, taken, chosen):
        draft.record(DropValues(None, known))
        return
    measured = {each.block: each for each in cheapest}
    left = [measured.get(each.block, each) for each in known if each.block != chosen.block]
    draft.record(DropValues(chosen, left))


def _price(loss: BlockLoss) -> float:
    return loss.added / loss.parameters


def _of_dense_model(job: Job) -> list[BlockLoss]:
    groups = range(len(probe_groups(job.config.layers)))
    return [loss for group in groups for loss in job.units.values(BlockProbe(group)).losses]


def _measured_again(job: Job, taken: list[BlockLoss], blocks: list[BlockLoss]) -> list[BlockLoss]:
    """The same blocks, with what they add in the model without those that are taken."""
    now = sum(each.added for each in taken)
    entering = np.asarray(job.units.array(Capture(0).probe_input))
    removed = [each.block for each in taken]
    kls = divergences_without(job, removed, [each.block for each in blocks], 0, entering)
    return [each._replace(added=kl - now) for each, kl in zip(blocks, kls, strict=True)]
