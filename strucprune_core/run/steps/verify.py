"""`evaluate.dense`, `evaluate.pruned` and `verify`: is the pruned model still worth publishing?"""

from __future__ import annotations

import math

import numpy as np

from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import NumericalFailure, QualityCollapsed
from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.evaluation.reload_check import (
    compare_with_transformers,
)
from strucprune_core.models.read_config import read_config
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import check_tensors
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import Job
from strucprune_core.run.steps.assemble import pruned_checkpoint
from strucprune_core.run.workspace import Draft


def evaluate(job: Job, unit: Unit, draft: Draft) -> None:
    """Value `perplexity` of the dense or the pruned model, streamed from its files."""
    dense = unit.name == "evaluate.dense"
    stream = job.dense if dense else _reopened(job)[1]
    windows = np.asarray(job.array("tokens.evaluation", "evaluation.npy"))
    ticks = iter(range(1, 1 << 30))
    draft.values["perplexity"] = value = perplexity(
        stream,
        windows,
        job.scratch,
        lambda: job.tick(next(ticks), _forward_ticks(job)),
    )
    if dense and not math.isfinite(value):
        raise NumericalFailure(
            "the dense model's perplexity is not finite",
            field="model.uri",
            remedy="The checkpoint itself is broken, or its tokenizer belongs to another model.",
        )
    if not dense and job.spec.evaluation is not None:
        _check_collapse(job, value, job.spec.evaluation.max_perplexity_ratio)


def verify(job: Job, unit: Unit, draft: Draft) -> None:
    """Reload the written files in transformers; compare logits with the weights in memory.

    Values: `reference`, `tokens`, `max_abs_logit_difference`, `tolerance`.

    Raises:
        NumericalFailure: they differ by more than rounding.
    """
    tokens = np.asarray(job.array("tokens", "calibration.npy"))
    index, written = _reopened(job)
    draft.values |= compare_with_transformers(
        job.stream(job.pruned_config, job.pruned_source()),
        written,
        index.config_bytes,
        set(index.tensors),
        tokens[:VERIFY_SEQUENCES, :VERIFY_TOKENS],
        job.scratch,
        lambda: job.tick(0, 1),
    )


def _reopened(job: Job) -> tuple[CheckpointIndex, ModelStream]:
    """The written checkpoint, read back as a stranger would read it."""
    index = open_checkpoint(pruned_checkpoint(job))
    config, index = read_config(index)
    check_tensors(config, index)
    return index, job.stream(config, TensorReader(index))


def _forward_ticks(job: Job) -> int:
    return job.config.layers + math.ceil(job.config.vocab_size / job.tiles.vocabulary_rows)


def _check_collapse(job: Job, pruned: float, limit: float) -> None:
    dense = float(job.workspace.values("evaluate.dense")["perplexity"])
    if not pruned <= limit * dense:  # `not <=`, so that NaN fails too.
        raise QualityCollapsed(
            f"perplexity went from {dense:.2f} to {pruned:.4g}, more than {limit:g} times as much; "
            "nothing was published",
            field="pruning.sparsity",
            remedy="Lower pruning.sparsity, use more calibration text, or raise "
            "evaluation.max_perplexity_ratio if you want the model all the same.",
        )
