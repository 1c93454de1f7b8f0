"""`block_probe.g`: what the model loses without one block, for the blocks of a group of layers."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.models.blocks import block_parameters
from strucprune_core.plan.blocks import candidates
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.artifacts import BlockLoss, BlockProbeValues, Capture
from strucprune_core.run.block_variants import divergences_without
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def block_probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure the divergence without each block; writes no file."""
    group = probe_groups(job.config.layers)[unit.index]
    blocks = [each for each in candidates(job.config, job.spec.pruning) if each.layer in group]
    kls: list[float] = []
    if blocks:
        entering = np.asarray(job.units.array(Capture(group.start).probe_input))
        kls = divergences_without(job, [], blocks, group.start, entering)
    losses = [
        BlockLoss(block, block_parameters(job.config, block), kl)
        for block, kl in zip(blocks, kls, strict=True)
    ]
    draft.record(BlockProbeValues(losses))
