"""A llama with layers of different widths as `nemotron-nas`, which vLLM and MLX load. No torch.

Its config.json lists a block for each layer. Runtimes compute a layer's width from `ffn_mult` as
round_up(int(2 * ffn_mult * hidden_size / 3), 256), so widths are multiples of 256. Layers are
padded with channels of zeros, which do not change their outputs. All layers have the same number of
query heads, of width hidden_size / heads. Weights have llama's names.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.export.gguf_layout import rope_parameters
from strucprune_core.models.config import LayerConfig, ModelConfig, RopeConfig
from strucprune_core.models.pruned_shapes import FORMAT_VERSION, PRUNED_PREFIX

WIDTH_MULTIPLE = 256
MODEL_TYPE = "nemotron-nas"
CONFIG_MODULE = "configuration_strucprune"
CONFIG_FILE = f"{CONFIG_MODULE}.py"
# Runtimes round `ffn_mult` to this number of digits.
_DIGITS = 6
# Keys of the dense model's config.json for which nemotron-nas has other keys.
_REPLACED = (
    "auto_map",
    "head_dim",
    "intermediate_size",
    "layer_types",
    "num_key_value_heads",
    "rope_scaling",
    "sliding_window",
    "strucprune",
)


def padded(config: ModelConfig) -> ModelConfig:
    """The model with every FFN padded to a multiple of 256 channels."""
    return config.with_blocks(
        [
            replace(block, ffn_widths=tuple(_round_up(width) for width in block.ffn_widths))
            for block in config.blocks
        ]
    )


def _round_up(width: int) -> int:
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def ffn_mult(width: int, hidden_size: int) -> float:
    """The multiplier that runtimes turn into `width`, a multiple of 256.

    Every value in (width - 256, width] is rounded up to `width`: the middle is farthest from a
    rounding error.
    """
    return round(1.5 * (width - WIDTH_MULTIPLE // 2) / hidden_size, _DIGITS)


def width_of(mult: float, hidden_size: int) -> int:
    """The width that runtimes compute."""
    return _round_up(int(2 * mult * hidden_size / 3))


def config_json(dense: dict[str, Any], pruned: ModelConfig) -> dict[str, Any]:
    """config.json of the export.

    Args:
        dense: The dense model's.
        pruned: The pruned model's shape, padded (see `padded`).
    """
    kept = {key: value for key, value in dense.items() if key not in _REPLACED}
    rope = pruned.blocks[0].rope or RopeConfig()
    section = rope_parameters(rope)
    # MLX reads rope_scaling, and refuses one without a type of scaling.
    scaling = {} if rope.type == "default" else {"rope_scaling": section}
    return {
        **kept,
        "model_type": MODEL_TYPE,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIG_MODULE}.StrucPruneBlocksConfig"},
        "hidden_size": pruned.hidden_size,
        "num_hidden_layers": pruned.layers,
        "num_attention_heads": max(block.query_heads for block in pruned.blocks),
        "vocab_size": pruned.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": pruned.norm.eps,
        "max_position_embeddings": pruned.max_position_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": pruned.tie_word_embeddings,
        "rope_theta": rope.theta,
        "rope_parameters": section,
        **scaling,
        "block_configs": [_block(block, pruned.hidden_size) for block in pruned.blocks],
    }


def _block(block: LayerConfig, hidden_size: int) -> dict[str, Any]:
    """The entry of a layer; of a block that it lacks, that it does nothing."""
    attention: dict[str, Any] = {"n_heads_in_group": None, "no_op": True}
    if "attention" not in block.without:
        attention = {"n_heads_in_group": block.query_heads_per_kv_head, "no_op": False}
    ffn: dict[str, Any] = {"ffn_mult": None, "no_op": True}
    if "ffn" not in block.without:
        ffn = {"ffn_mult": ffn_mult(block.ffn_widths[0], hidden_size), "no_op": False}
    return {
        "attention": {**attention, "replace_with_linear": False},
        "ffn": {**ffn, "replace_with_linear": False},
    }


def raw_config(exported: dict[str, Any]) -> dict[str, Any]:
    """The export as runtimes understand its config.json: one of layout `per_layer`.

    Raises:
        InvalidCheckpoint: it is not a `nemotron-nas` config, or lists another number of layers.
    """
    blocks = exported.get("block_configs")
    count = exported.get("num_hidden_layers")
    if exported.get("model_type") != MODEL_TYPE or not isinstance(blocks, list):
        raise _bad_export(f"its config.json is not one of model type {MODEL_TYPE}")
    if len(blocks) != count:
        raise _bad_export(f"it lists {len(blocks)} layers instead of {count}")
    hidden_size, heads = exported["hidden_size"], exported["num_attention_heads"]
    layers = [_shape(block, hidden_size, heads) for block in blocks]
    others = {key: value for key, value in exported.items() if key not in ("auto_map",)}
    return {
        **others,
        "model_type": f"{PRUNED_PREFIX}llama",
        "intermediate_size": next(layer["ffn"][0] for layer in layers if layer["ffn"]),
        "num_key_value_heads": next(layer["kv_heads"] for layer in layers if layer["kv_heads"]),
        "head_dim": hidden_size // heads,
        "strucprune": {"format_version": FORMAT_VERSION, "layers": layers},
    }


def _shape(block: dict[str, Any], hidden_size: int, heads: int) -> dict[str, Any]:
    """The shape of a layer, as of layout `per_layer`."""
    attention, ffn = block["attention"], block["ffn"]
    kv_heads = 0 if attention["no_op"] else heads // attention["n_heads_in_group"]
    return {
        "ffn": [] if ffn["no_op"] else [width_of(ffn["ffn_mult"], hidden_size)],
        "query_heads": 0 if attention["no_op"] else heads,
        "kv_heads": kv_heads,
    }


def _bad_export(reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"the export block_configs is wrong: {reason}",
        remedy="Leave 'block_configs' out of pruning.exports, and please report this.",
    )


def configuration_code() -> bytes:
    """The config class that is part of the export: transformers itself has none."""
    return resources.files("strucprune_core.export").joinpath(CONFIG_FILE).read_bytes()
