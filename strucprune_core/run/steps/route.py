"""`route.l`: run one dense layer over the calibration tokens, and record what its experts do."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.method.experts import stay
from strucprune_core.models.experts import experts_of, routing_of
from strucprune_core.models.forward import run_batches
from strucprune_core.models.panels import LayerWeights
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Route
from strucprune_core.run.context import Job
from strucprune_core.run.expert_choice import means_of, measured_steps, scores_of
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array

if TYPE_CHECKING:
    from strucprune_core.models.generic.routed import ExpertSums


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
    samples = len(hidden)

    def run(sequences: range) -> None:
        given, found = hidden[sequences.start : sequences.stop], output[sequences.start :]
        batches = run_batches(job.dense, this.layer, weights, given, job.scratch, job.safe_point)
        for batch, trace in batches:
            job.dense.put(found, batch, trace.hidden)
            del trace  # Not beside the next micro-batch's.
            job.tick(sequences.start + batch.stop, samples)

    first = job.split.train  # Scores see no held-out text.
    with contextlib.nullcontext() if experts is None else modules.recording(this.layer, sums):
        run(range(first))
    run(range(first, samples))
    output.flush()
    damage = [] if experts is None else _damage(job, this.layer, weights, hidden, output, sums)
    if job.energy == "kl_probe":
        np.save(draft.path(Route.probe_input), job.split.probe_windows(hidden))
    draft.record(replace(means_of(sums, this.layer), damage=damage))


def _damage(
    job: Job,
    layer: int,
    weights: LayerWeights,
    hidden: NDArray[np.float32],
    output: NDArray[np.float32],
    sums: ExpertSums,
) -> list[tuple[int, float]]:
    """What removing more and more experts does to the layer's output on some of the text."""
    from strucprune_core.run.masked_experts import masked_layer

    routing = routing_of(job.config)
    where = np.s_[: job.split.probe_sequences, : job.split.probe_tokens]
    given, wanted = np.ascontiguousarray(hidden[where]), output[where]
    scores, damage = scores_of(job.spec.pruning, means_of(sums, layer)), []
    for steps in measured_steps(job, layer):
        count = routing.experts - steps * routing.groups
        kept = stay(scores, sums.tokens.tolist(), count, routing.groups)
        found = masked_layer(job, layer, weights, kept, given)
        error = float(np.square(found - wanted, dtype=np.float64).sum())
        damage.append((steps, error / (given.shape[0] * given.shape[1])))
    return damage
