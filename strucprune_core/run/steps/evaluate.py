"""`evaluate.dense`, `evaluate.pruned`: the perplexity of a model, and whether pruning ruined it."""

from __future__ import annotations

import math

import numpy as np

from strucprune_core.errors import NumericalFailure, QualityCollapsed
from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.models.streaming import ModelStream
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Evaluate, EvaluateValues, EvaluationTokens
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.run.written_checkpoint import reopened


def evaluate(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure the perplexity of the dense or the pruned model, streamed; writes no file.

    Raises:
        NumericalFailure: that of the dense model is not finite.
        QualityCollapsed: that of the pruned model is too high, and there is no other size.
    """
    if unit.name == Evaluate("dense").unit:
        value = _perplexity(job, job.dense)
        _check_finite(value)
        draft.record(EvaluateValues(value))
        return
    value = _perplexity(job, reopened(job)[1])
    rejected = None
    try:
        _check_collapse(job, value)
    except QualityCollapsed as error:
        if not job.size:
            raise
        rejected = error.message  # Of several sizes, the others may be good.
    draft.record(EvaluateValues(value, rejected))


def _perplexity(job: Job, stream: ModelStream) -> float:
    windows = np.asarray(job.units.array(EvaluationTokens().evaluation))
    ticks = iter(range(1, 1 << 30))
    total = job.config.layers + math.ceil(job.config.vocab_size / job.tiles.vocabulary_rows)
    return perplexity(stream, windows, job.scratch, lambda: job.tick(next(ticks), total))


def _check_finite(dense: float) -> None:
    if not math.isfinite(dense):
        raise NumericalFailure(
            "the dense model's perplexity is not finite",
            field="model.uri",
            remedy="The checkpoint itself is broken, or its tokenizer belongs to another model.",
        )


def _check_collapse(job: Job, pruned: float) -> None:
    evaluation = job.spec.evaluation
    assert evaluation is not None  # noqa: S101 - else the graph has no such unit
    limit = evaluation.max_perplexity_ratio
    dense = job.units.values(Evaluate("dense")).perplexity
    if not pruned <= limit * dense:  # `not <=`, so that NaN fails too.
        raise QualityCollapsed(
            f"perplexity went from {dense:.2f} to {pruned:.4g}, more than {limit:g} times as much; "
            "nothing was published",
            field="pruning.sparsity",
            remedy="Lower pruning.sparsity, use more calibration text, or raise "
            "evaluation.max_perplexity_ratio if you want the model all the same.",
        )
