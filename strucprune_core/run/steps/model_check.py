"""`model_check`: before anything else, is the dense model what transformers makes of the files?"""

from __future__ import annotations

from strucprune_core.errors import NumericalFailure
from strucprune_core.evaluation.model_check import check_model
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import Job
from strucprune_core.run.steps.weights import check_weights
from strucprune_core.run.workspace import Draft


def model_check(job: Job, unit: Unit, draft: Draft) -> None:
    """Compare our forward on the user's own files with transformers'; writes no file.

    Values: `reference`, `tokens`, `layers`, `max_relative_difference`, `tolerance`.

    Raises:
        StrucPruneError: see `evaluation.model_check`.
    """
    shape = {
        "sequences": VERIFY_SEQUENCES,
        "length": min(VERIFY_TOKENS, job.config.max_position_embeddings),
    }
    try:
        if job.config.generic is not None:
            from strucprune_core.evaluation.generic_check import check_generic_model

            draft.values |= check_generic_model(
                job.dense, job.spec.calibration.seed, lambda: job.tick(0, 1), **shape
            )
            return
        draft.values |= check_model(
            job.dense,
            job.index.config_bytes,
            set(job.index.tensors),
            job.spec.calibration.seed,
            lambda: job.tick(0, 1),
            **shape,
        )
    except NumericalFailure:
        check_weights(job)  # Where a tensor is at fault, the error is to name it.
        raise
