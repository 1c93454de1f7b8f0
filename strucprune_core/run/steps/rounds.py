"""`trial.r.l` and `review.r.g`: what the widths of a round cost, before the price is set again."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.context import SOLUTION, Job, load_solution, solution_tensors
from strucprune_core.run.layer_variants import (
    Solved,
    divergences_from_dense,
    run_layer,
    variant_divergences,
)
from strucprune_core.run.steps.curves import load_order, solve_site
from strucprune_core.run.workspace import Draft

STREAM = "stream.npy"


@torch.inference_mode()
def trial(job: Job, unit: Unit, draft: Draft) -> None:
    """Solve a layer at the widths of a round, and lead the probe windows through it.

    Write solution.safetensors as `solve` does, and stream.npy, the layer's output in the model that
    the round prunes, (sequences x tokens x d) float32. Value `kl` of the last layer: the mean KL
    divergence per token of that model from the dense one.
    """
    layer = unit.index
    solved = _solved(job, unit.round, layer)
    weights = job.dense.layer(layer)
    hidden = run_layer(job, layer, weights, solved, job.array(*unit.reads[0]))
    if layer == job.config.layers - 1:
        (draft.values["kl"],) = divergences_from_dense(job, [hidden])
    else:
        np.save(draft.path(STREAM), hidden)
    if unit.round < job.spec.pruning.rounds:  # The last round is not reviewed.
        tensors = [solution_tensors(site, solution) for site, solution in solved]
        save_bundle(draft.path(SOLUTION), {k: v for part in tensors for k, v in part.items()})


@torch.inference_mode()
def review(job: Job, unit: Unit, draft: Draft) -> None:
    """Put the sites of each kind of each layer of a group back into the pruned model, in turn.

    Value `kl`: [layer, kind, mean KL divergence per token] of each.
    """
    group = probe_groups(job.config.layers)[unit.index]

    def pruned(layer: int) -> Solved:
        file = job.workspace.file(f"trial.{unit.round}.{layer}", SOLUTION)
        return [(site, load_solution(file, site)) for site in job.sites(layer)]

    draft.values["kl"] = variant_divergences(
        job,
        group,
        lambda layer: np.asarray(job.array(*_entering(unit.round, layer))),
        pruned,
        lambda layer, kind: [pair for pair in pruned(layer) if pair[0].kind != kind],
    )


def _entering(number: int, layer: int) -> tuple[str, str]:
    """The file of a layer's input in the model that a round prunes."""
    if layer == 0:
        return "capture.0", "probe_input.npy"
    return f"trial.{number}.{layer - 1}", STREAM


def _solved(job: Job, number: int, layer: int) -> Solved:
    widths = job.workspace.values(f"price.{number}")["widths"]
    solved: Solved = []
    for place, width in zip(job.planned, widths, strict=True):
        if place.layer == layer:
            order = load_order(job, layer, place.site)
            kept = order[len(order) - width :].sort().values
            solved.append((place.site, solve_site(job, layer, place.site, kept)[0]))
    return solved
