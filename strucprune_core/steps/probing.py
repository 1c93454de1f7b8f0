"""What the probe windows say of a model in which one layer is other than in a given one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.decoder import Decoder, LayerWeights
from strucprune_core.models.structures import Site, shrink
from strucprune_core.models.vocabulary import kl_divergences
from strucprune_core.steps.capture import probe_rows
from strucprune_core.steps.job import Job
from strucprune_core.surgery.pruned_source import SiteSolution, prune_layer

Rows = NDArray[np.float32]
Solved = list[tuple[Site, SiteSolution]]
"""The pruned sites of a layer, on the device."""


@dataclass(frozen=True, slots=True)
class _Run:
    """The probe windows on their way through a model whose `layer` is other in sites of a kind."""

    layer: int
    kind: str
    hidden: Rows


def variant_divergences(
    job: Job,
    group: range,
    entering: Callable[[int], Rows],
    given: Callable[[int], Solved],
    other: Callable[[int, str], Solved],
) -> list[tuple[int, str, float]]:
    """Divergence from the dense model of variants of a given model, one per layer and kind.

    The variants pass through the remaining layers side by side, so that each weight is read once.

    Args:
        job: The job.
        group: Layers of which there are variants.
        entering: A layer's input in the given model, (sequences x tokens x d).
        given: A layer's pruned sites in the given model.
        other: A layer's pruned sites in the variant of a kind of sites.

    Returns:
        (layer, kind, mean KL divergence per token in nats).
    """
    runs: list[_Run] = []
    for layer in range(group.start, job.config.layers):
        weights = job.dense.layer(layer)
        solved = given(layer)
        for number, run in enumerate(runs):
            hidden = run_layer(job, layer, weights, solved, run.hidden)
            runs[number] = _Run(run.layer, run.kind, hidden)
            job.tick(layer - group.start, job.config.layers - group.start)
        if layer in group:
            start = entering(layer)
            for kind in dict.fromkeys(site.kind for site in job.sites(layer)):
                hidden = run_layer(job, layer, weights, other(layer, kind), start)
                runs.append(_Run(layer, kind, hidden))
        job.tick(layer - group.start, job.config.layers - group.start)
    divergences = divergences_from_dense(job, [run.hidden for run in runs])
    return [(run.layer, run.kind, kl) for run, kl in zip(runs, divergences, strict=True)]


def run_layer(job: Job, layer: int, weights: LayerWeights, solved: Solved, hidden: Rows) -> Rows:
    """A layer, of which some sites are pruned, on (sequences x tokens x d)."""
    widths = {site.name: len(solution.kept) for site, solution in solved}
    block = shrink(job.config.blocks[layer], widths, job.spec.pruning.structures)
    x = torch.from_numpy(np.array(hidden)).to(job.device)
    trace = Decoder(job.config).forward_layer(block, x, prune_layer(weights, solved))
    found: Rows = trace.hidden.cpu().numpy()
    return found


def divergences_from_dense(job: Job, others: list[Rows]) -> list[float]:
    """Mean KL(dense || other) per token of other models, from their last layer's output."""
    dense = probe_rows(job, job.array(f"capture.{job.config.layers - 1}", "hidden.npy"))
    d = job.config.hidden_size
    return kl_divergences(
        job.dense,
        dense.reshape(-1, d),
        [hidden.reshape(-1, d) for hidden in others],
        lambda: job.tick(1, 1),
    )
