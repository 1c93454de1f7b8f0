"""`solve.l`: choose what stays of a layer, and repair it."""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.layer.admm import AdmmResult, SupportChoice, admm, choose_support
from strucprune_core.method.layer.damage_curve import HESSIAN_DAMPING
from strucprune_core.method.layer.ridge import relative_error_by_panels
from strucprune_core.method.linalg.matrices import DeviceMatrix
from strucprune_core.models.pruned_weights import SiteSolution
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import AdmmValues, Solve, SolvedSite, SolveValues
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import MeasuredSite, Solved, count_solved
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.solutions import solution_tensors
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.mapped_matrix import HostMatrix


@torch.inference_mode()
def solve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the kept structures of each site and their columns."""
    layer, model = unit.index, PrunedModel(job)
    sites = model.sites(layer)
    solved: Solved = []
    values: dict[str, SolvedSite] = {}
    for number, site in enumerate(sites):
        job.tick(number, len(sites))
        solution, values[site.name] = _solve_site(
            MeasuredSite(job, layer, site), model.width(layer, site)
        )
        solved.append((site, solution))
    count_solved(job, solved)
    save_bundle(draft.path(Solve.solution), solution_tensors(solved))
    draft.record(SolveValues(values))


def _solve_site(measured: MeasuredSite, width: int) -> tuple[SiteSolution, SolvedSite]:
    kept, went = measured.kept_at(width), None
    if measured.job.spec.pruning.solver == "admm":
        kept, went = _admm_support(measured, kept)
    repair = measured.repair(kept)
    error = _held_out_error(measured, repair.solution)
    dtype = str(repair.dtype).removeprefix("torch.")
    values = SolvedSite(error, repair.damping, repair.damping_retries, went, dtype)
    return repair.solution, values


def _admm_support(measured: MeasuredSite, start: Tensor) -> tuple[Tensor, AdmmValues]:
    """What ADMM keeps, warm-started, where held-out tokens agree; else the start. And a report."""
    # ADMM works on whole matrices (`plan.memory.solver`): a plan for it has panels that fit them.
    gram, matrix, site = measured.gram().tensor, measured.output_matrix().tensor, measured.site
    result = admm(
        gram,
        matrix,
        len(start),
        HESSIAN_DAMPING,
        start=start,
        group_size=site.columns,
        lockstep=site.lockstep,
        tick=lambda: measured.job.tick(0, 1),
    )
    choice = choose_support(
        gram,
        matrix,
        measured.columns(start),
        measured.columns(result.groups),
        measured.damping,
        measured.holdout(),
    )
    values = _admm_values(result, choice, start)
    return (result.groups if values.taken else start), values


def _admm_values(result: AdmmResult, choice: SupportChoice, start: Tensor) -> AdmmValues:
    assert result.start_objective is not None  # noqa: S101 - it began at `start`
    last = result.trace[-1] if result.trace else None
    return AdmmValues(
        status=result.status.value,
        iterations=len(result.trace),
        factorisations=result.factorisations,
        rho=None if last is None else last.rho,
        primal_residual=None if last is None else last.primal,
        dual_residual=None if last is None else last.dual,
        objective_before=result.start_objective,
        objective_after=result.objective,
        exchanged=len(start) - int(torch.isin(result.groups, start).sum()),
        held_out_error_before=choice.baseline_error,
        held_out_error_after=choice.candidate_error,
        taken=choice.taken == "candidate",
    )


def _held_out_error(measured: MeasuredSite, solution: SiteSolution) -> float | None:
    """Relative error on the held-out tokens that reach a site; None if none does."""
    job, weight = measured.job, solution.weight
    columns, whole = measured.columns(solution.kept), measured.output_matrix()
    fits = job.panels.fits(weight.shape[1])
    return relative_error_by_panels(
        measured.holdout_matrix(),
        whole,
        DeviceMatrix(weight) if fits else HostMatrix(weight.numpy(), job.device, job.transfers),
        columns,
        job.room,
    )
