"""`weights`: every tensor of the model is read once, and must hold finite values."""

from __future__ import annotations

from strucprune_core.models.finite_weights import check_finite_weights
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import WeightsValues
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft


def weights(job: Job, unit: Unit, draft: Draft) -> None:
    """Count the tensors that were read; writes no file.

    Raises:
        InvalidCheckpoint: see `check_weights`.
    """
    draft.record(WeightsValues(check_weights(job)))


def check_weights(job: Job) -> int:
    """Read every tensor once; how many there are.

    Raises:
        InvalidCheckpoint: a value is not finite; names the tensor, its file and its layer.
    """
    return check_finite_weights(job.reader, job.config, job.tick)
