"""`solve.l`: choose what stays of a layer, and repair it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.layer.admm import admm, choose_support
from strucprune_core.method.layer.damage_curve import HESSIAN_DAMPING
from strucprune_core.method.layer.ridge import relative_error_by_panels
from strucprune_core.method.linalg.matrices import DeviceMatrix
from strucprune_core.models.pruned_weights import SiteSolution
from strucprune_core.models.structures import Site
from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import SOLUTION, Job, solution_tensors
from strucprune_core.run.steps.capture import HOLDOUT
from strucprune_core.run.steps.curves import (
    load_gram,
    load_order,
    load_output_matrix,
    solve_site,
)
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.mapped_matrix import HostMatrix


@torch.inference_mode()
def solve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write solution.safetensors: per site the kept structures and their columns.

    Value `sites`: per site `reconstruction_error`, `damping`, `damping_retries`, and how ADMM went.
    """
    layer = unit.index
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    sites = job.sites(layer)
    for number, site in enumerate(sites):
        job.tick(number, len(sites))
        order = load_order(job, layer, site)
        kept = order[len(order) - job.width(layer, site) :].sort().values
        report: dict[str, Any] = {}
        if job.spec.pruning.solver == "admm":
            kept, report["admm"] = _admm_support(job, layer, site, kept)
        solution, damping, retries = solve_site(job, layer, site, kept)
        report["reconstruction_error"] = _held_out_error(job, layer, site, solution)
        report["damping"], report["damping_retries"] = damping, retries
        tensors |= solution_tensors(site, solution)
        values[site.name] = report
    save_bundle(draft.path(SOLUTION), tensors)
    draft.values["sites"] = values


def _admm_support(job: Job, layer: int, site: Site, start: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What ADMM keeps, warm-started, where held-out tokens agree; else the start. And a report."""
    # ADMM works on whole matrices (`plan.memory.solver`): a plan for it has panels that fit them.
    gram, matrix = load_gram(job, layer, site).tensor, load_output_matrix(job, layer, site).tensor
    found = admm(
        gram,
        matrix,
        len(start),
        HESSIAN_DAMPING,
        start=start,
        group_size=site.columns,
        lockstep=site.lockstep,
        tick=lambda: job.tick(0, 1),
    )
    choice = choose_support(
        gram,
        matrix,
        _columns(job, site, start),
        _columns(job, site, found.groups),
        job.damping(layer, site),
        job.tensor(f"capture.{layer}", HOLDOUT, site.name),
    )
    taken = choice.taken == "candidate"
    last = found.trace[-1] if found.trace else None
    return (found.groups if taken else start), {
        "status": found.status.value,
        "iterations": len(found.trace),
        "factorisations": found.factorisations,
        "rho": None if last is None else last.rho,
        "primal_residual": None if last is None else last.primal,
        "dual_residual": None if last is None else last.dual,
        "objective_before": found.start_objective,
        "objective_after": found.objective,
        "exchanged": len(start) - int(torch.isin(found.groups, start).sum()),
        "held_out_error_before": choice.baseline_error,
        "held_out_error_after": choice.candidate_error,
        "taken": taken,
    }


def _held_out_error(job: Job, layer: int, site: Site, solution: SiteSolution) -> float | None:
    """Relative error on the held-out tokens that reach a site; None if none does."""
    columns, whole = _columns(job, site, solution.kept), load_output_matrix(job, layer, site)
    weight = solution.weight
    fits = job.panels.fits(weight.shape[1])
    return relative_error_by_panels(
        job.matrix(f"capture.{layer}", HOLDOUT, site.name),
        whole,
        DeviceMatrix(weight) if fits else HostMatrix(weight.numpy(), job.device),
        columns,
        job.room,
    )


def _columns(job: Job, site: Site, kept: Tensor) -> Tensor:
    return torch.tensor(site.output.indices(kept.tolist()), device=job.device)
