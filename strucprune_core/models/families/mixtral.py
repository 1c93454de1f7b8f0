"""mixtral and qwen3_moe: a router sends each token to a few expert FFNs.

Experts are stored one by one, as on model hubs; routers are never touched.
"""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig
from strucprune_core.models.families.llama import LAYER_NAMES, parse_llama_like, with_windows
from strucprune_core.models.families.qwen import QWEN3_LAYER_NAMES, qwen_window
from strucprune_core.models.fields import RawConfig

MIXTRAL_LAYER_NAMES: LayerNames = replace(
    LAYER_NAMES,
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)
QWEN3_MOE_LAYER_NAMES: LayerNames = replace(
    QWEN3_LAYER_NAMES,
    router="mlp.gate",
    gate="mlp.experts.{}.gate_proj",
    up="mlp.experts.{}.up_proj",
    down="mlp.experts.{}.down_proj",
)


def parse_mixtral(config: RawConfig) -> ModelConfig:
    """Mixtral: every layer has experts."""
    parsed = parse_llama_like(
        config,
        names=MIXTRAL_LAYER_NAMES,
        kv_heads=8,
        eps=1e-5,
        theta=1_000_000.0,
        max_positions=131072,
    )
    experts = fields.integer(config, "num_local_experts", fields.MAX_EXPERTS, default=8)
    blocks = [replace(block, ffn_widths=block.ffn_widths * experts) for block in parsed.blocks]
    chosen = fields.integer(config, "num_experts_per_tok", experts, default=2)
    windows = fields.windows_alike(config, fields.window(config), parsed.layers)
    return replace(
        with_windows(parsed.with_blocks(blocks), windows),
        experts_per_token=chosen,
        normalise_routing=True,
    )


def parse_qwen3_moe(config: RawConfig) -> ModelConfig:
    """Qwen3-MoE: some layers may have one plain FFN instead."""
    bias = fields.boolean(config, "attention_bias")
    parsed = parse_llama_like(
        config,
        names=QWEN3_LAYER_NAMES,
        qkv_bias=bias,
        attention_output_bias=bias,
        kv_heads=4,
        max_positions=32768,
    )
    # Newer files of transformers use Mixtral's key.
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    experts = fields.integer(config, key, fields.MAX_EXPERTS, default=128)
    width = fields.integer(config, "moe_intermediate_size", fields.MAX_WIDTH, default=768)
    step = fields.integer(config, "decoder_sparse_step", fields.MAX_LAYERS, default=1)
    plain = _plain_layers(config)
    windows = fields.windows_alike(config, qwen_window(config), parsed.layers)
    blocks = [
        block
        if layer in plain or (layer + 1) % step
        else replace(block, names=QWEN3_MOE_LAYER_NAMES, ffn_widths=(width,) * experts)
        for layer, block in enumerate(parsed.blocks)
    ]
    return replace(
        with_windows(parsed.with_blocks(blocks), windows),
        experts_per_token=fields.integer(config, "num_experts_per_tok", experts, default=8),
        normalise_routing=fields.boolean(config, "norm_topk_prob"),
    )


def _plain_layers(config: RawConfig) -> list[int]:
    """Numbers of the layers that have no experts, whatever `decoder_sparse_step` says."""
    layers = config.get("mlp_only_layers") or []
    if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
        raise fields.bad_config("mlp_only_layers of config.json must list whole numbers")
    return layers
