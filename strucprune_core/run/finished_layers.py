"""Updates on layers (`layer_updates`), made from the values of finished units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from strucprune_core.models.blocks import Block, without_blocks
from strucprune_core.models.experts import experts_of
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.sites import pruned_config
from strucprune_core.report.document import largest_known
from strucprune_core.run.artifacts import (
    Allocate,
    Curve,
    Divergence,
    Price,
    PriceValues,
    Repair,
    Select,
    Solve,
)
from strucprune_core.run.context import Job
from strucprune_core.run.energies import group_energies
from strucprune_core.run.layer_updates import LayerUpdate, merged

# The price that follows repeats what they say.
_BEFORE_PRICES = ("probe", "gradient")


def updates_of(job: Job, unit: Unit) -> list[LayerUpdate]:
    """What a finished unit says of layers; empty for most units.

    Raises:
        LostFile: a file that it is read from is gone.
    """
    match unit.kind:
        case "probe" | "gradient":
            return _measured(job, unit)
        case "price":
            return _allocated(job, job.units.values(Price(unit.index)))
        case "allocate" if _differs_from_price(job):
            allocation = job.units.values(Allocate())
            updates = _allocated(job, allocation, [each.block for each in allocation.blocks])
            return _with_experts(updates, allocation.experts)
        case "select":
            return _selected(job)
        case "repair":
            return _repaired(job, unit.index)
        case "divergence":
            return [LayerUpdate(job.config.layers - 1, kl=job.units.values(Divergence()).kl)]
        case "solve":
            return [_solved(job, unit.index)]
        case _:
            return []


def updates_so_far(job: Job, finished: Sequence[Unit]) -> list[LayerUpdate]:
    """The layers' dense sizes, and what units that were finished earlier say of them together.

    Args:
        job: The job.
        finished: In the order of the graph.

    Raises:
        LostFile: as `updates_of`.
    """
    priced = any(unit.kind == "price" for unit in finished)
    relevant = (unit for unit in finished if not (priced and unit.kind in _BEFORE_PRICES))
    updates = [update for unit in relevant for update in updates_of(job, unit)]
    return merged([*_dense(job), *updates])


def _dense(job: Job) -> list[LayerUpdate]:
    if job.removes_experts_alone:
        return [
            LayerUpdate(layer, experts_before=experts.count)
            for layer in range(job.config.layers)
            if (experts := experts_of(job.config, layer)) is not None
        ]
    return [
        LayerUpdate(
            layer,
            width_before=sum(block.ffn_widths),
            query_heads_before=block.query_heads,
            experts_before=_experts_before(job, layer),
        )
        for layer, block in enumerate(job.config.blocks)
    ]


def _experts_before(job: Job, layer: int) -> int | None:
    """Experts of a layer, where some are removed beside sites."""
    experts = experts_of(job.config, layer)
    return None if not job.removes_experts or experts is None else experts.count


def _measured(job: Job, unit: Unit) -> list[LayerUpdate]:
    """Energies of a group of layers; nothing while their curves are to be made again."""
    curves = [file for file in unit.reads if file.name == Curve.curves]
    if not all(job.workspace.has_file(*curve) for curve in curves):
        return []
    largest: dict[int, float] = {}
    for (layer, _), energy in group_energies(job, unit.index).items():
        largest[layer] = max(energy, largest.get(layer, energy))
    return [LayerUpdate(layer, energy=energy) for layer, energy in largest.items()]


def _solved(job: Job, layer: int) -> LayerUpdate:
    sites = job.units.values(Solve(layer)).sites.values()
    error = largest_known(site.reconstruction_error for site in sites)
    solved = True if error is None else None
    return LayerUpdate(layer, reconstruction_error=error, solved=solved)


def _selected(job: Job) -> list[LayerUpdate]:
    """The experts that stay in each layer that has some."""
    kept = job.units.values(Select()).kept
    return [LayerUpdate(layer, experts_after=len(k)) for layer, k in enumerate(kept) if k]


def _repaired(job: Job, layer: int) -> list[LayerUpdate]:
    """The error of a layer of which experts went, repaired or not."""
    values = job.units.values(Repair(layer))
    error = values.error_after if values.status == "accepted" else values.error_before
    return [] if error is None else [LayerUpdate(layer, reconstruction_error=error)]


def _differs_from_price(job: Job) -> bool:
    """Whether the allocation may be another than that of the only price."""
    pruning = job.spec.pruning
    return pruning.rounds > 1 or pruning.removes_blocks or pruning.removes_experts


def _with_experts(updates: list[LayerUpdate], kept: Sequence[Sequence[int]]) -> list[LayerUpdate]:
    """Updates with the experts that stay, of a job that removes some beside sites."""
    if not kept:
        return updates
    return [replace(each, experts_after=len(kept[each.index]) or None) for each in updates]


def _allocated(
    job: Job, allocation: PriceValues, removed: Sequence[Block] = ()
) -> list[LayerUpdate]:
    """Widths, energies and damages of all layers."""
    pruned = pruned_config(job.config, job.spec.pruning, job.planned, [*allocation.widths])
    pruned = without_blocks(pruned, removed)
    energies: dict[int, list[float]] = {}
    damages: dict[int, list[float]] = {}
    for number, place in enumerate(job.planned):
        energies.setdefault(place.layer, []).append(allocation.energies[number])
        damages.setdefault(place.layer, []).append(allocation.predicted_damages[number])
    return [
        replace(
            dense,
            width_after=sum(block.ffn_widths),
            query_heads_after=block.query_heads,
            energy=max(energies.get(dense.index, [0.0])),  # A layer without an FFN has no site.
            predicted_damage=sum(damages.get(dense.index, [])),
        )
        for dense, block in zip(_dense(job), pruned.blocks, strict=True)
    ]
