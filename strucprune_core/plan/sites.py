"""The sites that a job prunes, the rules of their widths, and the held-out text. No torch.

The check of a job, its estimate and its run all use this module, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.budget import WidthRule
from strucprune_core.method.allocation.rule import allocate
from strucprune_core.method.allocation.threshold import Allocation
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.drafting import draft_with_experts
from strucprune_core.models.experts import kept_count, routing_of
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
    """The model's shape once the planned sites keep these numbers of structures."""
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
) -> Allocation:
    """Widths by the rule that is asked for.

    Args:
        pruning: The rule, the budget, and the temperature if it is given.
        planned: The sites.
        damages: Per site, non-decreasing marginal damage of the r-th removal.
        energies: Per site, loss per unit of damage.

    Raises:
        InvalidSpec: the floors do not allow the sparsity.
    """
    return allocate(
        pruning.allocation,
        damages,
        energies,
        pruning.sparsity,
        [place.rule for place in planned],
        [place.site.parameters for place in planned],
        pruning.temperature,
    )


def kept_experts(pruning: PruningSpec, config: ModelConfig) -> int:
    """Experts that every layer keeps, of a job that removes some.

    Raises:
        InvalidSpec: the sparsity is less than one expert, or more than the floors allow.
    """
    return kept_count(
        routing_of(config),
        pruning.sparsity,
        multiple_of=pruning.multiple_of,
        min_keep_fraction=pruning.min_keep_fraction,
        max_layer_sparsity=pruning.max_layer_sparsity,
    )


def _rule(layer: int, site: Site, pruning: PruningSpec) -> WidthRule:
    """Multiples of a hardware tile count for channels only: a head is wide enough by itself."""
    multiple = pruning.multiple_of if site.columns == 1 else site.lockstep
    most = min(pruning.max_layer_sparsity, pruning.max_sparsity_by_layer.get(layer, 1.0))
    return WidthRule(max(pruning.min_keep_fraction, 1.0 - most), multiple)
