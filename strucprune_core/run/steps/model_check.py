"""`model_check`: before anything else, is the dense model what transformers makes of the files?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strucprune_core.errors import NumericalFailure
from strucprune_core.evaluation.model_check import check_model
from strucprune_core.models.devices import matrix_products_in
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.sites import tried_experts
from strucprune_core.run.artifacts import ModelCheckValues
from strucprune_core.run.context import Job
from strucprune_core.run.steps.weights import check_weights
from strucprune_core.run.workspace import Draft

if TYPE_CHECKING:
    from strucprune_core.evaluation.experts_check import ExpertsCheck


def model_check(job: Job, unit: Unit, draft: Draft) -> None:
    """Compare the forward pass on the user's own files with transformers'; writes no file.

    Raises:
        StrucPruneError: see `evaluation.model_check` and `evaluation.generic_check`.
    """
    try:
        with matrix_products_in("float32"):
            found = _checked(job)
    except NumericalFailure:
        check_weights(job)  # Where a tensor is at fault, the error is to name it.
        raise
    draft.record(ModelCheckValues(**found))


def _checked(job: Job) -> dict[str, Any]:
    seed, length = job.spec.calibration.seed, min(VERIFY_TOKENS, job.config.max_position_embeddings)

    def tick() -> None:
        job.tick(0, 1)

    if job.config.generic is None:
        return check_model(
            job.dense.in_float32,
            job.index.config_bytes,
            set(job.index.tensors),
            seed,
            tick,
            sequences=VERIFY_SEQUENCES,
            length=length,
            computing=job.dense,
        )
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.evaluation.generic_check import check_generic_model

    return check_generic_model(
        job.dense.in_float32,
        seed,
        tick,
        sequences=VERIFY_SEQUENCES,
        length=length,
        removing=_experts_check(job) if job.removes_experts else None,
        computing=job.dense,
    )


def _experts_check(job: Job) -> ExpertsCheck:
    """Tries what removing experts does to a layer."""
    from strucprune_core.evaluation.experts_check import ExpertsCheck

    return ExpertsCheck(
        job.dense.in_float32,
        tried_experts(job.spec.pruning, job.config),
        job.spec.calibration.seed,
        equally=job.spec.pruning.keeps_equal_experts,
    )
