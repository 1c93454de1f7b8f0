"""The sites a job prunes, with the widths each may take. No torch.

Shared by whoever checks a job, estimates it and runs it, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from strucprune_core.allocation.budget import WidthRule
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.structures import Site, shrink, sites
from strucprune_core.spec import PruningSpec


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """A site of a layer, and the rule of its widths."""

    layer: int
    site: Site
    rule: WidthRule


def plan_sites(config: ModelConfig, pruning: PruningSpec) -> list[PlannedSite]:
    """All sites that a job prunes, layer by layer."""
    return [
        PlannedSite(layer, site, _rule(layer, site, pruning))
        for layer in range(config.layers)
        for site in sites(config, layer, pruning.structures)
    ]


def pruned_config(
    config: ModelConfig, pruning: PruningSpec, planned: list[PlannedSite], widths: list[int]
) -> ModelConfig:
    """The model's shape once each planned site keeps so many structures."""
    kept: list[dict[str, int]] = [{} for _ in config.blocks]
    for place, width in zip(planned, widths, strict=True):
        kept[place.layer][place.site.name] = width
    blocks = zip(config.blocks, kept, strict=True)
    return config.with_blocks(
        [shrink(block, widths, pruning.structures) for block, widths in blocks]
    )


def _rule(layer: int, site: Site, pruning: PruningSpec) -> WidthRule:
    """Heads keep no multiple of a hardware tile: a head is one."""
    multiple = pruning.multiple_of if site.columns == 1 else site.lockstep
    most = min(pruning.max_layer_sparsity, pruning.max_sparsity_by_layer.get(layer, 1.0))
    return WidthRule(max(pruning.min_keep_fraction, 1.0 - most), multiple)
