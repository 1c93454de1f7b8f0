"""Experts beside FFN channels: the budget that both share, and how many experts may go. No torch.

Every layer with experts loses equally many, so that config.json says how many there are. One more
step takes one expert of each group from all of these layers at once.
"""

from __future__ import annotations

import math

import numpy as np

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.method.allocation.budget import (
    REACH_TOLERANCE,
    out_of_reach,
    parameters_to_remove,
    rounded_up,
)
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import expert_parameters, least_kept, routing_of
from strucprune_core.plan.sites import plan_sites
from strucprune_core.spec import PruningSpec

MEASURED_STEPS = 8
"""Numbers of experts, of those that the budget allows, whose loss is measured."""


def step_parameters(config: ModelConfig) -> int:
    """Parameters that go with one expert of each group of every layer that has experts."""
    layers = range(config.layers)
    return routing_of(config).groups * sum(expert_parameters(config, layer) for layer in layers)


def removable_parameters(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters of all routed experts and FFN channels, of which the sparsity is a fraction."""
    routing = routing_of(config)
    channels = sum(
        place.site.structures * place.site.parameters for place in plan_sites(config, pruning)
    )
    return step_parameters(config) * (routing.experts // routing.groups) + channels


def shared_budget(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters that a job removes, of experts and of channels together."""
    return parameters_to_remove(
        pruning.asked_sparsity, [removable_parameters(config, pruning)], [1]
    )


def measured_steps(config: ModelConfig, pruning: PruningSpec) -> list[int]:
    """Numbers of steps of experts whose loss is measured, ascending, without 0.

    From the fewest beside which channels can meet the budget, to the fewest that meet it alone; one
    fewer if these remove more than `REACH_TOLERANCE` too much.

    Raises:
        InvalidSpec: the floors of both do not allow the sparsity.
    """
    budget, step, most = (
        shared_budget(config, pruning),
        step_parameters(config),
        _most(config, pruning),
    )
    fewest = max(0, math.ceil((budget - _channels_reach(config, pruning)) / step))
    if fewest > most:
        total = removable_parameters(config, pruning)
        reach = most * step + _channels_reach(config, pruning)
        raise out_of_reach(pruning.asked_sparsity, reach / total)
    last = min(most, math.ceil(budget / step))
    if last > fewest and last * step > (1.0 + REACH_TOLERANCE) * budget:
        last -= 1  # Beside one step fewer, channels meet the budget more closely.
    points = np.linspace(fewest, last, min(last - fewest, MEASURED_STEPS - 1) + 1)
    return sorted({round(float(point)) for point in points} - {0})


def check_shared_budget(config: ModelConfig, pruning: PruningSpec) -> None:
    """Check that a model's experts and channels allow the sparsity that is asked for.

    Raises:
        InvalidSpec: no expert can go, or the sparsity is too small or too large.
    """
    if _most(config, pruning) < 1:
        raise InvalidSpec(
            "no expert can be removed: a token chooses as many as must stay",
            field="pruning.structures",
            remedy="Remove FFN channels alone, or lower pruning.min_keep_fraction.",
            mends=[Mend("pruning.structures", ["ffn_channels"])],
        )
    total = removable_parameters(config, pruning)
    least = min(
        step_parameters(config),
        *(place.site.parameters for place in plan_sites(config, pruning)),
    )
    if pruning.asked_sparsity * total < least:
        enough = rounded_up(least / total)
        raise InvalidSpec(
            f"{pruning.asked_sparsity:.4g} of {total:,} parameters is less than one structure",
            field="pruning.sparsity",
            remedy=f"Ask for at least {enough:g}.",
            mends=[Mend("pruning.sparsity", enough)],
        )
    measured_steps(config, pruning)


def _most(config: ModelConfig, pruning: PruningSpec) -> int:
    """The most steps of experts that the router and the floors allow."""
    routing = routing_of(config)
    share = max(pruning.min_keep_fraction, 1.0 - pruning.max_layer_sparsity)
    floor = max(least_kept(routing), math.ceil(share * routing.experts - 1e-9))
    return (routing.experts - floor) // routing.groups


def _channels_reach(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters of all channels that the floors allow to remove."""
    return sum(
        (place.site.structures - place.rule.floor(place.site.structures)) * place.site.parameters
        for place in plan_sites(config, pruning)
    )
