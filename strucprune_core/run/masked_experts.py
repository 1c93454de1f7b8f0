"""A dense layer whose router avoids some experts, on many tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strucprune_core.evaluation.experts_check import masked_output
from strucprune_core.models.forward import micro_batches
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
    sequences, length = hidden.shape[:2]
    for rows in micro_batches(sequences, length, job.tiles.micro_batch_tokens):
        output[rows] = masked_output(job.dense, modules, layer, weights, kept, hidden[rows])
        job.safe_point()
    return output
