"""`trial.r.l`: a layer solved at the widths of a round, and what the round's model costs."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Capture, Price, Trial, TrialValues
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import divergences_from_dense, run_layer
from strucprune_core.run.measured_site import MeasuredSite, Solved, count_solved
from strucprune_core.run.solutions import solution_tensors
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def trial(job: Job, unit: Unit, draft: Draft) -> None:
    """Solve a layer at the widths of a round, and pass the probe windows through it.

    Write the layer's output for the next layer's trial; after the last layer, measure divergence.
    """
    this = Trial(unit.round, unit.index)
    solved = _solved(job, this)
    weights = job.dense.layer(this.layer)
    entering = job.units.array(this.entering)
    hidden = np.empty(entering.shape, dtype=np.float32)
    run_layer(job, this.layer, weights, solved, entering, hidden)
    kl: float | None = None
    if this.layer == job.config.layers - 1:
        (kl,) = divergences_from_dense(job, Capture(this.layer).hidden, [hidden])
    else:
        np.save(draft.path(Trial.stream), hidden)
    if this.round < job.spec.pruning.rounds:  # The last round is not reviewed.
        count_solved(job, solved)
        save_bundle(draft.path(Trial.solution), solution_tensors(solved))
    draft.record(TrialValues(kl))


def _solved(job: Job, this: Trial) -> Solved:
    widths = job.units.values(Price(this.round)).widths
    solved: Solved = []
    for place, width in zip(job.planned, widths, strict=True):
        if place.layer == this.layer:
            measured = MeasuredSite(job, place.layer, place.site)
            solved.append((place.site, measured.repair(measured.kept_at(width)).solution))
    return solved
