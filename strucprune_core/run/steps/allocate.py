"""`price.r` and `allocate`: energies, the widths they give, and which round's widths are used."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.energies import energy, review_factors
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.plan.sites import PlannedSite, allocate_widths
from strucprune_core.run.context import Job
from strucprune_core.run.steps.curves import CURVES, probe_removals
from strucprune_core.run.workspace import Draft

Key = tuple[int, str]
"""Layer and kind: the sites of a kind in a layer share an energy."""


def price(job: Job, unit: Unit, draft: Draft) -> None:
    """Values by planned site: `widths`, `energies`, `predicted_damages`; `price`, `temperature`."""
    damages = [_damages(job, place) for place in job.planned]
    first = unit.index == 1
    energies = _measured(job) if first else _reviewed(job, unit.index - 1)
    allocation = allocate_widths(job.spec.pruning, job.planned, damages, energies)
    draft.values |= asdict(allocation)
    draft.values["energies"] = energies
    draft.values["predicted_damages"] = [
        alpha * _removed(damage, width)
        for alpha, damage, width in zip(energies, damages, allocation.widths, strict=True)
    ]


def allocate(job: Job, unit: Unit, draft: Draft) -> None:
    """The values of one round's price: the one whose model diverges least from the dense one.

    Values beside: `round`, from 1, and `kls`, by round, empty if there was only one.
    """
    rounds = range(1, job.spec.pruning.rounds + 1)
    kls = [_tried(job, number) for number in rounds] if len(rounds) > 1 else []
    chosen = 1 + int(np.argmin(kls)) if kls else 1
    draft.values |= job.workspace.values(f"price.{chosen}")
    draft.values |= {"round": chosen, "kls": kls}


def _tried(job: Job, number: int) -> float:
    """Mean KL divergence per token of the model that a round prunes."""
    return float(job.workspace.values(f"trial.{number}.{job.config.layers - 1}")["kl"])


def _damages(job: Job, place: PlannedSite) -> NDArray[np.float64]:
    name = f"{place.site.name}.damage"
    damage: NDArray[np.float64] = job.tensor(f"curve.{place.layer}", CURVES, name).cpu().numpy()
    return damage


def _removed(damage: NDArray[np.float64], width: int) -> float:
    """Damage of all that goes when so many structures stay."""
    return float(damage[: len(damage) - width].sum())


def _measured_damage(job: Job, place: PlannedSite, damage: float) -> float:
    """The part of a site's damage that the calibration text has shown, and can show again.

    What is assumed of a site that few tokens reach has no effect on the held-out text either, by
    which energies are measured; counted, it would make its whole layer look cheap.
    """
    return damage * job.statistics(place.layer, place.site).measured_share


def _keys(job: Job) -> list[Key]:
    return [(place.layer, place.site.kind) for place in job.planned]


def _by_key(job: Job, values: list[float]) -> dict[Key, float]:
    """Sums over the sites that share an energy."""
    sums: dict[Key, float] = {}
    for key, value in zip(_keys(job), values, strict=True):
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _by_layer_and_kind(found: list[tuple[int, str, float]]) -> dict[Key, float]:
    return {(layer, kind): value for layer, kind, value in found}


def _reviewed_kls(job: Job, number: int) -> dict[Key, float]:
    """What the reviews of all groups of a round have measured."""
    found: dict[Key, float] = {}
    for group in range(len(probe_groups(job.config.layers))):
        found |= _by_layer_and_kind(job.workspace.values(f"review.{number}.{group}")["kl"])
    return found


def group_energies(job: Job, number: int) -> dict[Key, float]:
    """Energies of the layers of a group, by what the unit of that group has measured."""
    if job.energy == "gradient":
        return _by_layer_and_kind(job.workspace.values(f"gradient.{number}")["energies"])
    layers = probe_groups(job.config.layers)[number]
    predicted: dict[Key, float] = {}
    for place in job.planned:
        if place.layer in layers:
            key = (place.layer, place.site.kind)
            removed = float(_damages(job, place)[: probe_removals(place.site)].sum())
            predicted[key] = predicted.get(key, 0.0) + _measured_damage(job, place, removed)
    kls = _by_layer_and_kind(job.workspace.values(f"probe.{number}")["kl"])
    return {key: energy(kls[key], predicted[key]) for key in predicted}


def _measured(job: Job) -> list[float]:
    """One energy per planned site, from the dense model."""
    if job.energy == "forward":
        return [1.0] * len(job.planned)
    found: dict[Key, float] = {}
    for number in range(len(probe_groups(job.config.layers))):
        found |= group_energies(job, number)
    return [found[key] for key in _keys(job)]


def _reviewed(job: Job, number: int) -> list[float]:
    """One energy per planned site, from the model that a round has pruned."""
    before = job.workspace.values(f"price.{number}")
    predicted = _by_key(
        job,
        [
            _measured_damage(job, place, damage)
            for place, damage in zip(job.planned, before["predicted_damages"], strict=True)
        ],
    )
    whole = _tried(job, number)
    without = _reviewed_kls(job, number)
    losses = {key: whole - kl for key, kl in without.items()}
    keys = list(predicted)
    factors = dict(
        zip(
            keys,
            review_factors([predicted[key] for key in keys], [losses[key] for key in keys]),
            strict=True,
        )
    )
    return [old * factors[key] for key, old in zip(_keys(job), before["energies"], strict=True)]
