"""The blocks that a job may remove, and its budget. No torch."""

from __future__ import annotations

from collections.abc import Collection

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.blocks import steps_to_budget
from strucprune_core.method.allocation.budget import (
    out_of_reach,
    parameters_to_remove,
    too_small,
)
from strucprune_core.models.blocks import Block, block_parameters, blocks_of
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.sites import PlannedSite, plan_sites
from strucprune_core.spec import GGUF_EXPORTS, PruningSpec

# Blocks that are measured again before each further one goes: those that were cheapest last.
REMEASURED_BLOCKS = 16


def candidates(config: ModelConfig, pruning: PruningSpec) -> list[Block]:
    """Blocks that may go: those of layers that may lose everything.

    llama.cpp takes the width of heads from the first layer, which keeps its attention for a GGUF.
    """

    def may_go(block: Block) -> bool:
        if block == Block(0, "attention_blocks") and set(GGUF_EXPORTS) & set(pruning.exports):
            return False
        most = pruning.max_sparsity_by_layer.get(block.layer, 1.0)
        return min(most, pruning.max_layer_sparsity) >= 1.0

    return [block for block in blocks_of(config, pruning.structures) if may_go(block)]


def removable_parameters(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters of all chosen structures, of which the sparsity is a fraction; none counts twice.

    Blocks that may not go count as well, as channels of protected layers do.
    """
    every = blocks_of(config, pruning.structures)
    whole = sum(block_parameters(config, block) for block in every)
    apart = sites_apart(plan_sites(config, pruning), every)
    return whole + sum(place.site.structures * place.site.parameters for place in apart)


def sites_apart(places: list[PlannedSite], blocks: list[Block]) -> list[PlannedSite]:
    """The sites that do not go with any of the blocks."""
    return [
        place
        for place in places
        if not any(block.holds(place.layer, place.site) for block in blocks)
    ]


def block_budget(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters that a job removes, of blocks and of other structures together."""
    return parameters_to_remove(
        pruning.asked_sparsity, [removable_parameters(config, pruning)], [1]
    )


def one_of_each_stays(config: ModelConfig, gone: Collection[Block], block: Block) -> bool:
    """Whether another block of its kind is left once a block has gone as well."""
    structure = block.structure
    every = set(blocks_of(config, [structure]))
    return len(every - {*gone, block}) > 0


def most_steps(config: ModelConfig, pruning: PruningSpec) -> int:
    """The most blocks that a job can remove before its budget is met: the smallest ones first.

    One block of each kind always stays.
    """
    sizes = sorted(block_parameters(config, block) for block in candidates(config, pruning))
    possible = len(_removable_sizes(config, pruning))
    return min(possible, steps_to_budget(sizes, block_budget(config, pruning)))


def _removable_sizes(config: ModelConfig, pruning: PruningSpec) -> list[int]:
    """Parameters of blocks that can all go: of a kind of which every block may go, one stays.

    The one that stays counts as the largest, so that no more is promised than will go.
    """
    sizes: list[int] = []
    for structure in dict.fromkeys(each.structure for each in candidates(config, pruning)):
        may_go = [each for each in candidates(config, pruning) if each.structure == structure]
        of_kind = sorted(block_parameters(config, each) for each in may_go)
        every = blocks_of(config, [structure])
        sizes += of_kind[:-1] if len(may_go) == len(every) else of_kind
    return sizes


def estimated_removal(config: ModelConfig, pruning: PruningSpec) -> int:
    """Parameters that a job on blocks removes, if they cost equally much."""
    budget = block_budget(config, pruning)
    if not pruning.removes_blocks_alone:
        return budget
    sizes = [block_parameters(config, block) for block in candidates(config, pruning)]
    return sum(sizes[: steps_to_budget(sizes, budget)])


def check_blocks(config: ModelConfig, pruning: PruningSpec) -> None:
    """Check that a model's blocks allow the sparsity that is asked for.

    Raises:
        InvalidSpec: it has none that may go, or the sparsity is too small or too large.
    """
    sizes = _removable_sizes(config, pruning)
    if not sizes:
        raise InvalidSpec(
            "there is no block that may go: one of each kind must stay",
            field="pruning.structures",
            remedy="Remove other structures, or raise pruning.max_layer_sparsity or the numbers in "
            "pruning.max_sparsity_by_layer to 1.",
        )
    total = removable_parameters(config, pruning)
    sites = sites_apart(plan_sites(config, pruning), candidates(config, pruning))
    rest = sum(
        (place.site.structures - place.rule.floor(place.site.structures)) * place.site.parameters
        for place in sites
    )
    reachable = (sum(sizes) + rest) / total
    if pruning.asked_sparsity > reachable:
        raise out_of_reach(pruning.asked_sparsity, reachable)
    if pruning.removes_blocks_alone and pruning.asked_sparsity * total < min(sizes) / 2:
        raise too_small(pruning.asked_sparsity, min(sizes) / total)


def refits(pruning: PruningSpec, config: ModelConfig) -> bool:
    """Whether a job solves the matrices behind removed blocks again.

    Recovery trains what a refit would solve. transformers' own modules run a layer as a whole.
    """
    return pruning.removes_blocks and pruning.recover is None and config.generic is None


def refitted_layers(config: ModelConfig, pruned: ModelConfig) -> list[int]:
    """Layers whose FFN is the next one behind a removed block, in the layer or after it.

    Left out are FFNs that no linear matrix ends (a norm follows) and mixtures of experts.

    Args:
        config: The dense model.
        pruned: The same without the blocks; layers keep their numbers.
    """
    found: list[int] = []
    behind = False
    for layer, (before, after) in enumerate(zip(config.blocks, pruned.blocks, strict=True)):
        behind = behind or before.without != after.without
        names = after.names
        linear = names.ffn_output_norm is None and config.residual != "post_norm"
        if behind and linear and "ffn" not in after.without and names.router is None:
            found.append(layer)
            behind = False
    return found
