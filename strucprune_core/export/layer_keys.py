"""What config.json says of single layers, for a model that keeps only some of them. No torch.

Counts of layers get the new number, lists with an entry for each layer lose entries, lists of
layers' numbers are numbered anew, and "the first k layers" become those of them that stay. A rule
such as "every third layer" cannot be kept by any choice of layers: `periods` finds such keys, and a
model that has one without a list that overrules it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.fields import LAYER_KEYS

LAYER_TYPES = "layer_types"

_NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
"""Keys that list layers by their numbers."""

_LEADING = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
"""Keys that hold how many of the first layers are of one kind."""

_BY_NUMBER = "per_layer_config"
"""A key that holds an object with an entry for each layer that is unlike the others."""

_PERIODS = (
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "full_attention_interval",
    "global_attn_every_n_layers",
    "no_rope_layer_interval",
    "interleave_moe_layer_step",
    "decoder_sparse_step",
    "moe_layer_freq",
    "expert_layer_period",
    "attn_layer_period",
    "cross_attention_interval",
)
"""Keys of rules that repeat with the layer's number."""


def periods(section: Mapping[str, Any]) -> list[str]:
    """Keys of rules that repeat over the layers: which layer is of which kind changes with them.

    Args:
        section: The part of config.json that describes the language model.
    """
    if isinstance(section.get(LAYER_TYPES), list):
        return []
    return [key for key in _PERIODS if type(section.get(key)) is int and section[key] > 1]


def with_layers(raw: Mapping[str, Any], config: ModelConfig, kept: Sequence[int]) -> dict[str, Any]:
    """A config.json of a model that keeps some layers.

    Args:
        raw: The whole model's. If it has a `text_config`, that describes the language model.
        config: The whole model.
        kept: Numbers of the layers that stay, ascending.
    """
    if len(kept) == config.layers:
        return dict(raw)
    part = raw.get("text_config")
    if isinstance(part, dict):
        return {**raw, "text_config": with_layers(part, config, kept)}
    section = {**raw, **_layer_types(config)}
    cut = {key: _value(key, value, kept, config.layers) for key, value in section.items()}
    pruned = raw.get("strucprune")
    if isinstance(pruned, dict) and isinstance(pruned.get("layers"), list):
        cut["strucprune"] = {**pruned, "layers": [pruned["layers"][layer] for layer in kept]}
    return cut


def _layer_types(config: ModelConfig) -> dict[str, list[str]]:
    """The kind of each layer where a rule by number would give the layers that stay other ones."""
    windows = [block.window for block in config.blocks]
    if config.generic is not None or len(set(windows)) == 1:
        return {}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {LAYER_TYPES: kinds}


def _value(key: str, value: Any, kept: Sequence[int], total: int) -> Any:
    if key in LAYER_KEYS and value == total:
        return len(kept)
    if key in _LEADING and type(value) is int:
        return sum(layer < value for layer in kept)
    if key == _BY_NUMBER and isinstance(value, dict):
        entries = {number: value.get(str(layer)) for number, layer in enumerate(kept)}
        return {str(number): entry for number, entry in entries.items() if entry is not None}
    if not isinstance(value, list):
        return value
    if key in _NUMBERS:
        return [number for number, layer in enumerate(kept) if layer in value]
    speaks_of_layers = "layer" in key or "pattern" in key or "block_types" in key
    if speaks_of_layers and len(value) == total:
        return [value[layer] for layer in kept]
    return value
