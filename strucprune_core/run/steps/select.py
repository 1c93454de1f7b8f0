"""`select`: which experts stay."""

from __future__ import annotations

from strucprune_core.method.allocation.rule import allocate
from strucprune_core.models.experts import experts_of, routing_of
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.sites import kept_experts, plan_experts
from strucprune_core.run.artifacts import SelectValues
from strucprune_core.run.context import Job
from strucprune_core.run.energies import removed_damage
from strucprune_core.run.expert_choice import damages_of, expert_energies, kept_of
from strucprune_core.run.workspace import Draft


def select(job: Job, unit: Unit, draft: Draft) -> None:
    """Choose the experts of every layer; writes no file."""
    if job.spec.pruning.layout == "uniform":
        count = kept_experts(job.spec.pruning, job.config)
        layers = range(job.config.layers)
        has = [experts_of(job.config, layer) is not None for layer in layers]
        draft.record(
            SelectValues(
                kept=[kept_of(job, layer, count) if has[layer] else [] for layer in layers],
                price=None,
                temperature=None,
                energies=[1.0] * len(has),
                damages=[_damage(job, layer, count) if has[layer] else 0.0 for layer in layers],
            )
        )
    else:
        draft.record(_by_layer(job))


def _by_layer(job: Job) -> SelectValues:
    """A number of experts for each layer, by the price of a parameter."""
    pruning, groups = job.spec.pruning, routing_of(job.config).groups
    places = plan_experts(job.config, pruning)
    energies = expert_energies(job)
    allocation = allocate(
        pruning.allocation,
        [damages_of(job, place.layer) for place in places],
        energies,
        pruning.asked_sparsity,
        [place.rule for place in places],
        [place.parameters for place in places],
        pruning.temperature,
    )
    kept: list[list[int]] = [[] for _ in job.config.blocks]
    alphas, damages = [1.0] * len(kept), [0.0] * len(kept)
    for place, steps, alpha in zip(places, allocation.widths, energies, strict=True):
        kept[place.layer] = kept_of(job, place.layer, steps * groups)
        alphas[place.layer] = alpha
        damages[place.layer] = alpha * _damage(job, place.layer, steps * groups)
    return SelectValues(kept, allocation.price, allocation.temperature, alphas, damages)


def _damage(job: Job, layer: int, count: int) -> float:
    """Damage of a layer that keeps so many experts."""
    return removed_damage(damages_of(job, layer), count // routing_of(job.config).groups)
