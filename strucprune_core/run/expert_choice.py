"""What finished units say of the experts of layers: their scores, and what removing some costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.allocation.energies import PROBE_SPARSITY, energy
from strucprune_core.method.experts import removal_damages, stay
from strucprune_core.models.experts import routing_of
from strucprune_core.plan.graph import probe_groups
from strucprune_core.plan.sites import ExpertLayer, kept_experts, plan_experts
from strucprune_core.run.artifacts import Capture, Probe, Route, RouteValues
from strucprune_core.run.context import Job
from strucprune_core.spec import PruningSpec

if TYPE_CHECKING:
    from strucprune_core.models.generic.routed import ExpertSums

CURVE_POINTS = 8
"""Numbers of experts for which a layer's damage is measured, beside that of its probe."""


def scores_of(pruning: PruningSpec, values: RouteValues) -> list[float]:
    """The scores that a job goes by, by expert."""
    return values.output_norm if pruning.expert_score == "output_norm" else values.reap


def seen_of(job: Job, layer: int) -> RouteValues:
    """What a layer's experts do with the calibration text."""
    if job.removes_experts_alone:
        return job.units.values(Route(layer))
    values = job.units.values(Capture(layer)).experts
    assert values is not None  # noqa: S101 - captured beside sites
    return values


def means_of(sums: ExpertSums, layer: int) -> RouteValues:
    """What experts do on the average, of sums over tokens.

    Raises:
        NumericalFailure: an output of an expert is not finite.
    """
    tokens = sums.tokens.clamp(min=1)
    norms, gated = (sums.squares / tokens).tolist(), (sums.gated / tokens).tolist()
    if not np.isfinite([*norms, *gated]).all():
        raise NumericalFailure(
            "the output of an expert is not finite",
            field="model.uri",
            layer=layer,
            remedy="The checkpoint is damaged, or its values are too large for float32.",
        )
    return RouteValues(sums.tokens.tolist(), norms, gated, [])


def kept_of(job: Job, layer: int, count: int) -> list[int]:
    """The experts of a layer that stay, if so many do."""
    values = seen_of(job, layer)
    scores = scores_of(job.spec.pruning, values)
    return stay(scores, values.tokens, count, routing_of(job.config).groups)


def damages_of(job: Job, layer: int) -> NDArray[np.float64]:
    """Damage of each step by which a layer loses experts."""
    values = job.units.values(Route(layer))
    routing = routing_of(job.config)
    return removal_damages(values.damage, routing.experts // routing.groups)


def measured_steps(job: Job, layer: int) -> list[int]:
    """Numbers of removals whose damage is measured, for a layer with experts."""
    pruning, routing = job.spec.pruning, routing_of(job.config)
    if pruning.layout == "uniform":
        return [(routing.experts - kept_experts(pruning, job.config)) // routing.groups]
    (place,) = (each for each in plan_experts(job.config, pruning) if each.layer == layer)
    most = place.steps - place.rule.floor(place.steps)
    points = np.linspace(0, most, min(most, CURVE_POINTS) + 1)[1:]
    return sorted({round(float(point)) for point in points} | {probed_steps(place)} - {0})


def probed_steps(place: ExpertLayer) -> int:
    """Steps that a probe of a layer takes: a fixed share, at least one, never too many."""
    wanted = max(1, round(PROBE_SPARSITY * place.steps))
    return min(wanted, place.steps - place.rule.floor(place.steps))


def probed_experts(job: Job, place: ExpertLayer) -> list[int]:
    """The experts of a layer that stay in its probe."""
    left = place.steps - probed_steps(place)
    return kept_of(job, place.layer, left * routing_of(job.config).groups)


def expert_energies(job: Job) -> list[float]:
    """One energy for each layer that loses experts."""
    places = plan_experts(job.config, job.spec.pruning)
    if job.energy == "forward":
        return [1.0] * len(places)
    kls = {
        each.layer: each.value
        for number in range(len(probe_groups(job.config.layers)))
        for each in job.units.values(Probe(number)).kl
    }
    return [
        energy(kls[place.layer], float(damages_of(job, place.layer)[: probed_steps(place)].sum()))
        for place in places
    ]
