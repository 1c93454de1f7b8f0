"""The `strucprune` section of a pruned checkpoint's config.json: the shape of each layer. No torch.

{"format_version": 2, "layers": [{"ffn": [1024], "query_heads": 9, "kv_heads": 3}, ...]}

A layer without an FFN has no widths, one without attention 0 heads of each kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.config import BlockKind, LayerConfig, ModelConfig
from strucprune_core.models.fields import (
    MAX_WIDTH,
    RawConfig,
    bad_config,
    checked_integer,
    integers,
)

PRUNED_PREFIX = "strucprune_"
"""A checkpoint whose layers differ has this, and its family's type, as model type."""
EXPERTS_PREFIX = "strucprune_experts_"
"""The same of one whose layers have different numbers of experts."""
FORMAT_VERSION = 2


def family_of(model_type: str) -> str:
    """The model type of the dense model."""
    return model_type.removeprefix(EXPERTS_PREFIX).removeprefix(PRUNED_PREFIX)


def expert_section(config: ModelConfig) -> dict[str, Any]:
    """The section of a model whose layers have different numbers of experts.

    `expert_counts` lists them by layer, null for a layer without experts. `experts` has the size of
    each tensor that is cut along an axis, {"model.layers.1.mlp.gate.weight": [0, 5]}; where every
    expert has a tensor of its own, that of the first stands for the parameter that all become.
    """
    counts: list[int | None] = []
    tensors: dict[str, list[int]] = {}
    for layer, block in enumerate(config.blocks):
        generic = block.generic
        experts = None if generic is None else generic.experts
        counts.append(None if experts is None else experts.count)
        if generic is not None and experts is not None:
            prefix, shapes = config.names.layer.format(layer), dict(generic.tensors)
            tensors |= {prefix + name.format(0): [0, experts.count] for name in experts.own}
            tensors |= {prefix + name: [axis, shapes[name][axis]] for name, axis in experts.sliced}
    return {"format_version": FORMAT_VERSION, "expert_counts": counts, "experts": tensors}


def expert_counts(raw: RawConfig, layers: int) -> list[int | None] | None:
    """Experts of each layer by that section; None if there is none.

    Raises:
        InvalidCheckpoint: the section is of another version, or invalid.
    """
    if not str(raw.get("model_type")).startswith(EXPERTS_PREFIX):
        return None
    section = raw.get("strucprune")
    if not isinstance(section, dict) or section.get("format_version") != FORMAT_VERSION:
        raise bad_config(f"config.json has no section strucprune of version {FORMAT_VERSION}")
    counts = section.get("expert_counts")
    if not isinstance(counts, list) or len(counts) != layers:
        raise bad_config(f"strucprune.expert_counts of config.json must list {layers} layers")
    return [
        None if each is None else checked_integer("strucprune expert_counts", each, MAX_WIDTH)
        for each in counts
    ]


def pruned_section(config: ModelConfig) -> dict[str, Any]:
    """The section that describes a model's layers.

    Of a generic model it lists the shapes of the tensors that make channels, by their names in the
    files: {"format_version": 2, "tensors": {"model.layers.0.mlp.down_proj.weight": [64, 40]}}.
    """
    if config.generic is not None:
        return {"format_version": FORMAT_VERSION, "tensors": _channel_tensors(config)}
    layers = [
        {
            "ffn": list(block.ffn_widths),
            "query_heads": block.query_heads,
            "kv_heads": block.kv_heads,
        }
        for block in config.blocks
    ]
    return {"format_version": FORMAT_VERSION, "layers": layers}


def _channel_tensors(config: ModelConfig) -> dict[str, list[int]]:
    found = {}
    for layer, block in enumerate(config.blocks):
        if block.generic is not None:
            shapes = dict(block.generic.tensors)
            for each in block.generic.feed_forwards:
                for role in (each.output, *(source.tensor for source in each.sources)):
                    found[config.names.layer.format(layer) + role] = list(shapes[role])
    return found


def apply_pruned_shapes(raw: RawConfig, dense: ModelConfig) -> ModelConfig:
    """The model with the layer shapes that its section lists.

    Raises:
        InvalidCheckpoint: the section is missing, of another version, or invalid.
    """
    section = raw.get("strucprune")
    if not isinstance(section, dict) or section.get("format_version") != FORMAT_VERSION:
        raise InvalidCheckpoint(
            f"config.json has no strucprune section of format_version {FORMAT_VERSION}",
            remedy="Prune the dense model again with this version of strucprune.",
        )
    layers = section.get("layers")
    if not isinstance(layers, list) or len(layers) != dense.layers:
        raise bad_config(f"strucprune.layers of config.json must list {dense.layers} layers")
    blocks = [_block(layer, block) for layer, block in zip(layers, dense.blocks, strict=True)]
    return replace(dense, model_type=str(raw["model_type"]), blocks=tuple(blocks))


def _block(layer: Any, dense: LayerConfig) -> LayerConfig:
    if not isinstance(layer, dict):
        raise bad_config("strucprune.layers of config.json must hold objects")
    without: tuple[BlockKind, ...] = dense.without
    query_heads = kv_heads = 0
    if layer.get("query_heads") == 0 == layer.get("kv_heads"):
        without = (*without, "attention")
    else:
        query_heads = checked_integer("strucprune query_heads", layer.get("query_heads"), MAX_WIDTH)
        kv_heads = checked_integer("strucprune kv_heads", layer.get("kv_heads"), query_heads)
        if query_heads % kv_heads:
            raise bad_config(
                f"strucprune.layers of config.json has {query_heads} query heads for {kv_heads} "
                f"key-value heads"
            )
    widths: tuple[int, ...] = ()
    if layer.get("ffn") == []:
        without = (*without, "ffn")
    else:
        widths = integers("strucprune ffn", layer.get("ffn"), len(dense.ffn_widths), MAX_WIDTH)
    return replace(
        dense, query_heads=query_heads, kv_heads=kv_heads, ffn_widths=widths, without=without
    )
