"""A dense layer whose router avoids some experts, on many tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strucprune_core.evaluation.experts_check import masked
from strucprune_core.models.forward import run_batches
from strucprune_core.models.panels import LayerWeights
from strucprune_core.run.context import Job

Rows = NDArray[np.float32]


def masked_layer(
    job: Job, layer: int, weights: LayerWeights, kept: Sequence[int], hidden: Rows
) -> Rows:
    """The output of a dense layer whose tokens choose among the experts `kept`.

    Args:
        job: The job.
        layer: Which layer; it has experts.
        weights: Its tensors by name within the layer.
        kept: Experts.
        hidden: Its input, (sequences x tokens x d).
    """
    modules = job.dense.modules
    assert modules is not None  # noqa: S101 - experts are removed of generic models alone
    output = np.empty_like(hidden)
    with masked(job.config, modules, layer, weights, kept) as tensors:
        batches = run_batches(job.dense, layer, tensors, hidden, job.scratch, job.safe_point)
        for rows, trace in batches:
            job.dense.put(output, rows, trace.hidden)
            del trace  # Not beside the next micro-batch's.
            job.safe_point()
    return output
