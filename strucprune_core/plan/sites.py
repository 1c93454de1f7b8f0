"""The sites that a job prunes, the rules of their widths, and the held-out text. No torch.

The check of a job, its estimate and its run all use this module, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.budget import WidthRule
from strucprune_core.method.allocation.rule import allocate
from strucprune_core.method.allocation.threshold import Allocation
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.drafting import draft_with_experts
from strucprune_core.models.experts import (
    checked_count,
    expert_parameters,
    experts_of,
    kept_count,
    least_kept,
    routing_of,
)
from strucprune_core.models.structures import Site, shrink, sites
from strucprune_core.spec import CalibrationSpec, Energy, PruningSpec

HOLDOUT_SHARE = 16  # One calibration sequence in 16 is held out, at least one.
PROBE_SEQUENCES, PROBE_TOKENS = 2, 256  # As good as four of 512, at a quarter of the time.


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """A site of a layer, and the rule of its widths."""

    layer: int
    site: Site
    rule: WidthRule


def holdout_sequences(samples: int) -> int:
    """Calibration sequences kept out of the statistics: the last ones."""
    return max(1, samples // HOLDOUT_SHARE)


def probe_shape(spec: CalibrationSpec) -> tuple[int, int]:
    """(sequences, tokens) of the held-out text that energies are probed on."""
    sequences = min(PROBE_SEQUENCES, holdout_sequences(spec.samples))
    return sequences, min(PROBE_TOKENS, spec.sequence_length)


def requested_sparsity(pruning: PruningSpec, config: ModelConfig) -> float:
    """The sparsity that is asked for, or that the number of experts is."""
    if pruning.expert_count is None:
        return pruning.asked_sparsity
    return 1.0 - pruning.expert_count / routing_of(config).experts


def energy_of(pruning: PruningSpec) -> Energy:
    """How layers' energies are measured; a uniform allocation needs none."""
    return "forward" if pruning.allocation == "uniform" else pruning.energy


def plan_sites(config: ModelConfig, pruning: PruningSpec) -> list[PlannedSite]:
    """All sites that a job prunes, layer by layer."""
    return [
        PlannedSite(layer, site, _rule(layer, site, pruning))
        for layer in range(config.layers)
        for site in sites(config, layer, pruning.structures)
    ]


def sites_by_layer(config: ModelConfig, pruning: PruningSpec) -> list[list[Site]]:
    """The sites that a job prunes of each layer."""
    return [sites(config, layer, pruning.structures) for layer in range(config.layers)]


def tokens_reaching(config: ModelConfig, layer: int, site: Site, tokens: int) -> int:
    """Of so many tokens those that reach a site: an expert gets its share."""
    block = config.blocks[layer]
    if site.kind != "ffn" or block.names.router is None:
        return tokens
    return tokens * config.experts_per_token // len(block.ffn_widths)


def equal_widths(planned: list[PlannedSite], sparsity: float) -> list[int]:
    """Structures that sites keep if all lose the same share, or as much as their limits allow.

    For what is not known before a job runs: where layers lose different shares.
    """
    return [_equal_width(place, sparsity) for place in planned]


def _equal_width(place: PlannedSite, sparsity: float) -> int:
    size, multiple = place.site.structures, place.rule.multiple_of
    width = round((1.0 - sparsity) * size / multiple) * multiple
    return min(size, max(place.rule.floor(size), width))


def keeps_drafting(pruning: PruningSpec, config: ModelConfig) -> bool:
    """Whether what drafts further tokens still loads beside the pruned model.

    Programs that draft build it by the keys of config.json. These stay as they are if the widths
    of layers are listed beside them; nothing else is known to leave them.
    """
    if pruning.removes_experts:
        return not draft_with_experts(config)
    of_layers = {"ffn_channels", "kv_groups", "query_heads"}
    return pruning.layout == "per_layer" and of_layers.issuperset(pruning.structures)


def with_drafting(config: ModelConfig, pruning: PruningSpec) -> ModelConfig:
    """The model with what drafts further tokens if the result of a job keeps it, else without."""
    return config if keeps_drafting(pruning, config) else replace(config, drafting=())


def pruned_config(
    config: ModelConfig, pruning: PruningSpec, planned: list[PlannedSite], widths: list[int]
) -> ModelConfig:
    """The model's shape once the planned sites keep these numbers of structures.

    Sites of blocks that go whole keep none; `models.blocks` removes the blocks.
    """
    kept: list[dict[str, int]] = [{} for _ in config.blocks]
    for place, width in zip(planned, widths, strict=True):
        kept[place.layer][place.site.name] = width
    blocks = zip(config.blocks, kept, strict=True)
    return config.with_blocks(
        [shrink(block, widths, pruning.structures) for block, widths in blocks]
    )


def allocate_widths(
    pruning: PruningSpec,
    planned: list[PlannedSite],
    damages: list[NDArray[np.float64]],
    energies: list[float],
    sparsity: float | None = None,
) -> Allocation:
    """Widths by the rule that is asked for.

    Args:
        pruning: The rule, the budget, and the temperature if it is given.
        planned: The sites.
        damages: Per site, non-decreasing marginal damage of the r-th removal.
        energies: Per site, loss per unit of damage.
        sparsity: Of these sites, if it is not that of the job.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    return allocate(
        pruning.allocation,
        damages,
        energies,
        pruning.asked_sparsity if sparsity is None else sparsity,
        [place.rule for place in planned],
        [place.site.parameters for place in planned],
        pruning.temperature,
    )


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """A layer that loses experts, one of each group at a time.

    Attributes:
        layer: Its number.
        steps: Experts of a group.
        parameters: Parameters that a step removes.
        rule: How many steps may be left.
    """

    layer: int
    steps: int
    parameters: int
    rule: WidthRule


def plan_experts(config: ModelConfig, pruning: PruningSpec) -> list[ExpertLayer]:
    """The layers of a job that gives each one a number of experts of its own."""
    routing = routing_of(config)
    multiple = math.lcm(routing.groups, pruning.multiple_of) // routing.groups
    needed = least_kept(routing) / routing.experts
    return [
        ExpertLayer(
            layer,
            experts.count // routing.groups,
            expert_parameters(config, layer) * routing.groups,
            WidthRule(max(needed, _kept_share(layer, pruning)), multiple),
        )
        for layer in range(config.layers)
        if (experts := experts_of(config, layer)) is not None
    ]


def tried_experts(pruning: PruningSpec, config: ModelConfig) -> list[int]:
    """Experts that layers keep where it is tried what removing some does: all lose some.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    routing = routing_of(config)
    if not pruning.removes_experts_alone:
        # How many stay beside channels is not known yet; that one of each group can go always is.
        return [routing.experts - routing.groups] * config.layers
    if pruning.layout == "uniform":
        return [kept_experts(pruning, config)] * config.layers
    counts = [0] * config.layers
    for place in plan_experts(config, pruning):
        most = place.steps - place.rule.floor(place.steps)
        gone = min(most, max(1, round(pruning.asked_sparsity * place.steps)))
        counts[place.layer] = (place.steps - gone) * routing_of(config).groups
    return counts


def likely_experts(pruning: PruningSpec, config: ModelConfig) -> list[int]:
    """Experts that layers keep, of a job that gives each one a number, if all cost the same.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    places, groups = plan_experts(config, pruning), routing_of(config).groups
    damages = [np.ones(place.steps) for place in places]
    allocation = allocate(
        "threshold",
        damages,
        [1.0] * len(places),
        pruning.asked_sparsity,
        [place.rule for place in places],
        [place.parameters for place in places],
    )
    kept = dict(zip((place.layer for place in places), allocation.widths, strict=True))
    return [groups * kept.get(layer, 0) for layer in range(config.layers)]


def kept_experts(pruning: PruningSpec, config: ModelConfig) -> int:
    """Experts that every layer keeps, of a job that removes equally many of each.

    Raises:
        InvalidSpec: the sparsity is less than one expert, or more than the floors allow; or so many
            cannot stay.
    """
    if pruning.expert_count is not None:
        return checked_count(
            routing_of(config),
            pruning.expert_count,
            multiple_of=pruning.multiple_of,
            min_keep_fraction=pruning.min_keep_fraction,
            max_layer_sparsity=pruning.max_layer_sparsity,
        )
    return kept_count(
        routing_of(config),
        pruning.asked_sparsity,
        multiple_of=pruning.multiple_of,
        min_keep_fraction=pruning.min_keep_fraction,
        max_layer_sparsity=pruning.max_layer_sparsity,
    )


def _rule(layer: int, site: Site, pruning: PruningSpec) -> WidthRule:
    """Multiples of a hardware tile count for channels only: a head is wide enough by itself."""
    multiple = pruning.multiple_of if site.columns == 1 else site.lockstep
    return WidthRule(_kept_share(layer, pruning), multiple)


def _kept_share(layer: int, pruning: PruningSpec) -> float:
    """Share of a layer's structures that always stays."""
    most = min(pruning.max_layer_sparsity, pruning.max_sparsity_by_layer.get(layer, 1.0))
    return max(pruning.min_keep_fraction, 1.0 - most)
