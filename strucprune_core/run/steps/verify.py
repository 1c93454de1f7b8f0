"""`verify`: reload the written files in transformers and compare them with the pruned weights."""

from __future__ import annotations

import numpy as np

from strucprune_core.evaluation.reload_check import compare_with_transformers
from strucprune_core.models.devices import matrix_products_in
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import ReloadValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.workspace import Draft
from strucprune_core.run.written_checkpoint import reopened


def verify(job: Job, unit: Unit, draft: Draft) -> None:
    """Compare logits; writes no file.

    Raises:
        NumericalFailure: they differ by more than rounding.
    """
    tokens = np.asarray(job.units.array(Tokens().calibration))
    index, written = reopened(job)
    with matrix_products_in("float32"):
        result = compare_with_transformers(
            PrunedModel(job).stream().in_float32,
            written.in_float32,
            index.config_bytes,
            set(index.tensors),
            tokens[:VERIFY_SEQUENCES, :VERIFY_TOKENS],
            job.scratch,
            lambda: job.tick(0, 1),
        )
    draft.record(ReloadValues(**result))
