"""What the probe windows say of a model without some blocks, and of it without one more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from strucprune_core.models.blocks import Block, without_blocks
from strucprune_core.models.panels import LayerWeights
from strucprune_core.run.artifacts import Capture
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import divergences_from_dense, pass_layer

Rows = NDArray[np.float32]


def divergences_without(
    job: Job, removed: Collection[Block], others: Sequence[Block], first: int, entering: Rows
) -> list[float]:
    """Divergence from the dense model of the model without `removed` and one more block.

    All variants pass through the layers side by side, so that each weight is read once.

    Args:
        job: The job.
        removed: Blocks that are gone, none of them before layer `first`.
        others: The one more, of each variant.
        first: The layer that the pass begins with.
        entering: Its input, (sequences x tokens x d).

    Returns:
        Mean KL divergence per token, in nats, of each variant.
    """
    layers = job.config.layers
    base = entering
    runs: dict[Block, Rows] = {}
    last = max(block.layer for block in others)
    for layer, weights in job.dense.layers(range(first, layers)):
        here = [block for block in others if block.layer == layer]
        passed = _run(job, layer, weights, removed, [*runs.values()])
        runs = dict(zip(runs, passed, strict=True))
        for block in here:
            (runs[block],) = _run(job, layer, weights, [*removed, block], [base])
        if layer < last:
            (base,) = _run(job, layer, weights, removed, [base])
        del weights
        job.tick(layer - first, layers - first)
    dense = Capture(job.config.layers - 1).hidden
    return divergences_from_dense(job, dense, [runs[block] for block in others])


def _run(
    job: Job, layer: int, weights: LayerWeights, removed: Collection[Block], runs: list[Rows]
) -> list[Rows]:
    """A layer without the blocks that are gone from it, on runs of the probe windows."""
    config = without_blocks(job.config, [block for block in removed if block.layer == layer])
    if not runs or config.blocks[layer].is_removed:
        return runs
    stream, together = job.stream(config, job.reader), np.concatenate(runs)
    pass_layer(job, stream, layer, weights, together, together)
    return np.split(together, len(runs))
