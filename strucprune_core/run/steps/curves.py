"""`curve.l` and `probe.g`: damage curves, and what pruning each layer alone does to the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.allocation.energies import PROBE_SPARSITY
from strucprune_core.method.layer.damage_curve import DamageCurve, damage_curve
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.method.layer.ridge import ridge_into
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, spans
from strucprune_core.models.pruned_weights import SiteSolution
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import tensor_name
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import Solved, variant_divergences
from strucprune_core.run.steps.capture import GRAMS
from strucprune_core.run.workspace import Draft

CURVES = "curves.safetensors"


@torch.inference_mode()
def curve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write curves.safetensors: per site its order (m,) int64 and damage (m,) float64."""
    tensors: dict[str, Tensor] = {}
    sites = job.sites(unit.index)
    for number, site in enumerate(sites):
        job.tick(number, len(sites))
        result = _curve(job, unit.index, site)
        tensors |= {f"{site.name}.order": result.order, f"{site.name}.damage": result.damage}
    save_bundle(draft.path(CURVES), tensors)


@torch.inference_mode()
def probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Prune the sites of each kind of each layer of a group alone; what does the model then say?

    Value `kl`: [layer, kind, mean KL divergence per token] of each.
    """

    def pruned(layer: int, kind: str) -> Solved:
        solved: Solved = []
        for site in job.sites(layer):
            if site.kind == kind:
                kept = load_order(job, layer, site)[probe_removals(site) :].sort().values
                solved.append((site, solve_site(job, layer, site, kept)[0]))
        return solved

    draft.values["kl"] = variant_divergences(
        job,
        probe_groups(job.config.layers)[unit.index],
        lambda layer: np.asarray(job.array(f"capture.{layer}", "probe_input.npy")),
        lambda layer: [],
        pruned,
    )


def load_gram(job: Job, layer: int, site: Site) -> Matrix:
    """A site's Gram matrix, (m x m) float32."""
    return job.matrix(f"capture.{layer}", GRAMS, site.name)


def load_output_matrix(job: Job, layer: int, site: Site) -> Matrix:
    """A site's dense output matrix, (d x m) float32: on the device if it fits, else in scratch."""
    name = tensor_name(job.config, layer, site.output.role)
    stored_rows, stored_columns = job.reader.info(name).shape
    turned = site.output.axis == 0
    rows, columns = (stored_columns, stored_rows) if turned else (stored_rows, stored_columns)
    if job.panels.fits(columns):
        stored = job.reader.tensor(name, device=job.device, dtype=torch.float32)
        return DeviceMatrix(stored.T if turned else stored)
    matrix = job.room.matrix(rows, columns, torch.float32)
    for span in spans(stored_rows, job.panels.panel):
        part = job.reader.rows(name, span.start, span.stop, dtype=torch.float32)
        if turned:
            matrix.write(slice(0, rows), span, part.T)
        else:
            matrix.write(span, slice(0, columns), part)
        job.safe_point()
    return matrix


def load_order(job: Job, layer: int, site: Site) -> Tensor:
    """Structures of a site, first to go first, (structures,) int64 on the host."""
    return job.tensor(f"curve.{layer}", CURVES, f"{site.name}.order").cpu()


def solve_site(job: Job, layer: int, site: Site, kept: Tensor) -> tuple[SiteSolution, float, int]:
    """The site's ridge solution for the structures `kept`, with its damping and retries.

    Its weight is on the device if its rows fit a panel, else in a scratch file mapped to memory.
    """
    columns = torch.tensor(site.output.indices(kept.tolist()), device=job.device)
    dense = load_output_matrix(job, layer, site)
    solution = job.room.matrix(dense.shape[0], len(columns), torch.float32)
    gram = load_gram(job, layer, site)
    asked = job.damping(layer, site)
    damping, retries = ridge_into(gram, dense, columns, asked, solution, job.room)
    return SiteSolution(kept, solution.tensor), damping, retries


def _curve(job: Job, layer: int, site: Site) -> DamageCurve:
    gram, matrix = load_gram(job, layer, site), load_output_matrix(job, layer, site)
    if site.columns == 1:
        return damage_curve(gram, matrix, room=job.room)
    return group_damage_curve(gram, matrix, site.columns, site.lockstep, job.room)


def probe_removals(site: Site) -> int:
    """Structures that a probe removes: a fixed share, whole rounds, never all."""
    rounds = max(1, round(PROBE_SPARSITY * site.structures / site.lockstep))
    return min(rounds * site.lockstep, site.structures - site.lockstep)
