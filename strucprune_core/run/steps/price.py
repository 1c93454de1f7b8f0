"""`price.r`: energies, and the widths that they give."""

from __future__ import annotations

from strucprune_core.method.allocation.budget import reachable_sparsity
from strucprune_core.plan.blocks import block_budget
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.shared_budget import shared_budget
from strucprune_core.plan.sites import allocate_widths
from strucprune_core.run.artifacts import PriceValues
from strucprune_core.run.context import Job
from strucprune_core.run.energies import measured_energies, removed_damage, reviewed_energies
from strucprune_core.run.measured_site import MeasuredSite
from strucprune_core.run.workspace import Draft


def price(job: Job, unit: Unit, draft: Draft) -> None:
    """Allocate widths by damage curves and energies; writes no file."""
    damages = [MeasuredSite(job, place.layer, place.site).damage() for place in job.planned]
    first = unit.index == 1
    energies = measured_energies(job) if first else reviewed_energies(job, unit.index - 1)
    allocation = allocate_widths(
        job.spec.pruning, job.planned, damages, energies, _sparsity_alone(job)
    )
    predicted = [
        alpha * removed_damage(damage, width)
        for alpha, damage, width in zip(energies, damages, allocation.widths, strict=True)
    ]
    draft.record(
        PriceValues(
            allocation.widths, allocation.price, allocation.temperature, energies, predicted
        )
    )


def _sparsity_alone(job: Job) -> float | None:
    """Of a job that removes blocks or experts too: what sites alone would lose, if they can."""
    pruning = job.spec.pruning
    if not pruning.removes_blocks and not pruning.removes_experts:
        return None
    widths = [place.site.structures for place in job.planned]
    parameters = [place.site.parameters for place in job.planned]
    rules = [place.rule for place in job.planned]
    total = sum(width * each for width, each in zip(widths, parameters, strict=True))
    budget_of = block_budget if pruning.removes_blocks else shared_budget
    budget = budget_of(job.config, pruning)
    return min(budget / total, reachable_sparsity(widths, parameters, rules))
