"""`route.l`: run one dense layer over the calibration tokens, and record what its experts do."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from strucprune_core.errors import NumericalFailure
from strucprune_core.models.experts import experts_of
from strucprune_core.models.forward import micro_batches
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Route, RouteValues
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array


@torch.inference_mode()
def route(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the layer's output, and record the tokens and outputs of its experts.

    Raises:
        NumericalFailure: an output of an expert is not finite.
    """
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.models.generic.routed import ExpertSums

    this = Route(unit.index)
    hidden = job.units.array(this.entering)
    output = new_array(draft.path(Route.hidden), hidden.shape)
    experts, modules = experts_of(job.config, this.layer), job.dense.modules
    assert modules is not None  # noqa: S101 - experts are removed of generic models alone
    sums = ExpertSums(0 if experts is None else experts.count)
    weights = job.dense.layer(this.layer)
    samples, length = hidden.shape[:2]

    def run(sequences: range) -> None:
        for batch in micro_batches(len(sequences), length, job.tiles.micro_batch_tokens):
            rows = slice(sequences.start + batch.start, sequences.start + batch.stop)
            trace = job.dense.run_layer(this.layer, weights, hidden[rows])
            output[rows] = trace.hidden.cpu().numpy()
            del trace
            job.tick(rows.stop, samples)

    first = job.split.train  # Scores see no held-out text.
    with contextlib.nullcontext() if experts is None else modules.recording(this.layer, sums):
        run(range(first))
    run(range(first, samples))
    output.flush()
    tokens = sums.tokens.clamp(min=1)
    if job.energy == "kl_probe":
        np.save(draft.path(Route.probe_input), job.split.probe_windows(hidden))
    values = RouteValues(
        sums.tokens.tolist(),
        (sums.squares / tokens).tolist(),
        (sums.gated / tokens).tolist(),
        (sums.added / (first * length)).tolist(),
    )
    if not np.isfinite([*values.output_norm, *values.reap, *values.damage]).all():
        raise NumericalFailure(
            "the output of an expert is not finite",
            field="model.uri",
            layer=this.layer,
            remedy="The checkpoint is damaged, or its values are too large for float32.",
        )
    draft.record(values)
