"""Blocks of a model that go whole: the attention or the FFN of a layer, or both. No torch.

A layer adds the outputs of its blocks to the residual stream. Without a block, norms included, the
stream passes by. While a job runs, a layer without both keeps its number and hands on what it is
given; in the files such layers are missing, and those behind them are numbered anew (`compacted`).

2SSP (arXiv 2501.17771) removes attention blocks so, ShortGPT (arXiv 2403.03853) whole layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

from strucprune_core.models.config import BlockKind, GenericLayer, LayerConfig, ModelConfig
from strucprune_core.models.structures import Site, StructureKind
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name

BLOCKS_OF: dict[StructureKind, tuple[BlockKind, ...]] = {
    "attention_blocks": ("attention",),
    "ffn_blocks": ("ffn",),
    "layers": get_args(BlockKind),
}
"""What goes with each kind of structure that this module knows."""


class Block(NamedTuple):
    """Something that goes whole: a structure of a layer, of one of the kinds of `BLOCKS_OF`."""

    layer: int
    structure: StructureKind

    @property
    def kinds(self) -> tuple[BlockKind, ...]:
        """The blocks of the layer that go."""
        return BLOCKS_OF[self.structure]

    def holds(self, layer: int, site: Site) -> bool:
        """Whether a site goes with it."""
        return layer == self.layer and site.kind in self.kinds


def blocks_of(config: ModelConfig, structures: Iterable[StructureKind]) -> list[Block]:
    """Everything of these kinds that a model has, layer by layer."""
    wanted = [kind for kind in structures if kind in BLOCKS_OF]
    return [
        Block(layer, structure)
        for layer, block in enumerate(config.blocks)
        for structure in wanted
        if set(BLOCKS_OF[structure]) - set(block.without)
    ]


def block_parameters(config: ModelConfig, block: Block) -> int:
    """Parameters that go with a block."""
    left = without_blocks(config, [block])
    return _parameters(config, block.layer) - _parameters(left, block.layer)


def without_blocks(config: ModelConfig, removed: Collection[Block]) -> ModelConfig:
    """The model without some blocks; its layers keep their numbers."""
    blocks = list(config.blocks)
    for block in removed:
        blocks[block.layer] = _without(blocks[block.layer], block.kinds)
    return config.with_blocks(blocks)


def _without(layer: LayerConfig, kinds: Sequence[BlockKind]) -> LayerConfig:
    gone = tuple(kind for kind in get_args(BlockKind) if kind in {*layer.without, *kinds})
    changed = replace(layer, without=gone)
    if "attention" in gone:
        changed = replace(changed, query_heads=0, kv_heads=0)
    if "ffn" in gone:
        changed = replace(changed, ffn_widths=())
    if changed.is_removed and layer.generic is not None:
        changed = replace(changed, generic=GenericLayer((), ()))
    return changed


def kept_layers(config: ModelConfig) -> list[int]:
    """Numbers of the layers of which something is left."""
    return [layer for layer, block in enumerate(config.blocks) if not block.is_removed]


def compacted(config: ModelConfig) -> ModelConfig:
    """The model as its files hold it: without removed layers."""
    return config.with_blocks([config.blocks[layer] for layer in kept_layers(config)])


def names_in_files(config: ModelConfig) -> dict[str, str]:
    """Of each tensor of a model, its name in the files, where removed layers do not count."""
    numbers = {layer: number for number, layer in enumerate(kept_layers(config))}
    names = {name: name for name in expected_tensors(config)}
    for layer, number in numbers.items():
        for role in layer_tensors(config, layer):
            names[tensor_name(config, layer, role)] = tensor_name(config, number, role)
    return names


def _parameters(config: ModelConfig, layer: int) -> int:
    return sum(math.prod(shape) for shape in layer_tensors(config, layer).values())
