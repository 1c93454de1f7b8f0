"""`probe.g`: what pruning one kind of sites of one layer alone does to the model."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.models.structures import SiteKind
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.plan.sites import plan_experts
from strucprune_core.run.artifacts import Capture, ProbeValues
from strucprune_core.run.context import Job
from strucprune_core.run.energies import probe_removals
from strucprune_core.run.expert_choice import probed_experts
from strucprune_core.run.layer_variants import expert_divergences, variant_divergences
from strucprune_core.run.measured_site import MeasuredSite, Solved
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure the divergence of each variant; writes no file."""
    group = probe_groups(job.config.layers)[unit.index]
    if job.removes_experts_alone:
        places = {each.layer: each for each in plan_experts(job.config, job.spec.pruning)}
        kl = expert_divergences(job, group, lambda layer: probed_experts(job, places[layer]))
        draft.record(ProbeValues(kl))
        return

    def pruned(layer: int, kind: SiteKind) -> Solved:
        solved: Solved = []
        for site in job.sites(layer):
            if site.kind == kind:
                measured = MeasuredSite(job, layer, site)
                kept = measured.kept_at(site.structures - probe_removals(site))
                solved.append((site, measured.repair(kept).solution))
        return solved

    kl = variant_divergences(
        job,
        group,
        lambda layer: np.asarray(job.units.array(Capture(layer).probe_input)),
        lambda layer: [],
        pruned,
    )
    draft.record(ProbeValues(kl))
