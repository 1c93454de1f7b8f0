"""Energies of the planned sites, from what probes, gradients and reviews have measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.energies import PROBE_SPARSITY, energy, review_factors
from strucprune_core.models.structures import Site
from strucprune_core.plan.graph import probe_groups
from strucprune_core.plan.sites import PlannedSite
from strucprune_core.run.artifacts import Gradient, OfKind, Price, Probe, Review, Trial
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import MeasuredSite

Key = tuple[int, str]
"""Layer and kind: the sites of a kind in a layer share an energy."""


def measured_energies(job: Job) -> list[float]:
    """One energy per planned site, from the dense model."""
    if job.energy == "forward":
        return [1.0] * len(job.planned)
    energies: dict[Key, float] = {}
    for number in range(len(probe_groups(job.config.layers))):
        energies |= group_energies(job, number)
    return [energies[key] for key in _keys(job)]


def group_energies(job: Job, number: int) -> dict[Key, float]:
    """Energies of the layers of a group, by what the unit of that group has measured."""
    if job.energy == "gradient":
        return _by_key(job.units.values(Gradient(number)).energies)
    layers = probe_groups(job.config.layers)[number]
    places = [place for place in job.planned if place.layer in layers]
    predicted = _sums(places, [_probed_damage(job, place) for place in places])
    kls = _by_key(job.units.values(Probe(number)).kl)
    return {key: energy(kls[key], predicted[key]) for key in predicted}


def reviewed_energies(job: Job, number: int) -> list[float]:
    """One energy per planned site, from the model that a round has pruned."""
    before = job.units.values(Price(number))
    shown = [
        _shown_damage(job, place, damage)
        for place, damage in zip(job.planned, before.predicted_damages, strict=True)
    ]
    predicted = _sums(job.planned, shown)
    whole, without = round_divergence(job, number), _reviewed_divergences(job, number)
    losses = [whole - without[key] for key in predicted]
    factors = dict(zip(predicted, review_factors([*predicted.values()], losses), strict=True))
    return [old * factors[key] for key, old in zip(_keys(job), before.energies, strict=True)]


def round_divergence(job: Job, number: int) -> float:
    """Mean KL divergence per token of the model that a round prunes."""
    kl = job.units.values(Trial(number, job.config.layers - 1)).kl
    assert kl is not None  # noqa: S101 - the trial of the last layer measures it
    return kl


def removed_damage(damage: NDArray[np.float64], width: int) -> float:
    """Damage of all that goes when so many structures stay."""
    return float(damage[: len(damage) - width].sum())


def probe_removals(site: Site) -> int:
    """Structures that a probe removes: a fixed share, whole rounds, never all."""
    rounds = max(1, round(PROBE_SPARSITY * site.structures / site.lockstep))
    return min(rounds * site.lockstep, site.structures - site.lockstep)


def _probed_damage(job: Job, place: PlannedSite) -> float:
    """What the curve predicts of the removals of a probe."""
    damage = MeasuredSite(job, place.layer, place.site).damage()
    return _shown_damage(job, place, float(damage[: probe_removals(place.site)].sum()))


def _shown_damage(job: Job, place: PlannedSite, damage: float) -> float:
    """The part of a site's damage that the calibration text has shown, and can show again.

    What is assumed of a site that few tokens reach has no effect on the held-out text either, by
    which energies are measured; counted, it would make its whole layer look cheap.
    """
    return damage * MeasuredSite(job, place.layer, place.site).statistics.measured_share


def _reviewed_divergences(job: Job, number: int) -> dict[Key, float]:
    """What the reviews of all groups of a round have measured."""
    kls: dict[Key, float] = {}
    for group in range(len(probe_groups(job.config.layers))):
        kls |= _by_key(job.units.values(Review(number, group)).kl)
    return kls


def _keys(job: Job) -> list[Key]:
    return [(place.layer, place.site.kind) for place in job.planned]


def _by_key(measured: Iterable[OfKind]) -> dict[Key, float]:
    return {(each.layer, each.kind): each.value for each in measured}


def _sums(places: Sequence[PlannedSite], values: Sequence[float]) -> dict[Key, float]:
    """Sums over the sites that share an energy."""
    sums: dict[Key, float] = {}
    for place, value in zip(places, values, strict=True):
        key = (place.layer, place.site.kind)
        sums[key] = sums.get(key, 0.0) + value
    return sums
