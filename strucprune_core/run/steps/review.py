"""`review.r.g`: what the layers of a group cost in the model that a round has pruned."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.artifacts import ProbeValues, Trial
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import variant_divergences
from strucprune_core.run.measured_site import Solved
from strucprune_core.run.solutions import load_solution
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def review(job: Job, unit: Unit, draft: Draft) -> None:
    """Put the sites of each kind of each layer of a group back in turn; writes no file."""
    number = unit.round

    def pruned(layer: int) -> Solved:
        file = job.units.path(Trial(number, layer).solution)
        return [(site, load_solution(file, site)) for site in job.sites(layer)]

    kl = variant_divergences(
        job,
        probe_groups(job.config.layers)[unit.index],
        lambda layer: np.asarray(job.units.array(Trial(number, layer).entering)),
        pruned,
        lambda layer, kind: [pair for pair in pruned(layer) if pair[0].kind != kind],
    )
    draft.record(ProbeValues(kl))
