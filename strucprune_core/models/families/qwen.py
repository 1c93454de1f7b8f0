"""qwen2 (a bias on queries, keys and values) and qwen3 (a norm on queries and keys)."""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig
from strucprune_core.models.families.llama import LAYER_NAMES, parse_llama_like
from strucprune_core.models.fields import RawConfig

QWEN3_LAYER_NAMES: LayerNames = replace(
    LAYER_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)


def parse_qwen2(config: RawConfig) -> ModelConfig:
    """Qwen2 and Qwen2.5."""
    return with_qwen_windows(
        config,
        parse_llama_like(without_window(config), qkv_bias=True, sliding=False, max_positions=32768),
    )


def parse_qwen3(config: RawConfig) -> ModelConfig:
    """Qwen3."""
    bias = fields.boolean(config, "attention_bias")
    parsed = parse_llama_like(
        without_window(config),
        names=QWEN3_LAYER_NAMES,
        qkv_bias=bias,
        attention_output_bias=bias,
        sliding=False,
        head_dim=128,
        max_positions=32768,
    )
    return with_qwen_windows(config, parsed)


def without_window(config: RawConfig) -> RawConfig:
    """The config for a parser that must not see the window: Qwen has rules of its own for it."""
    return {key: value for key, value in config.items() if key != "sliding_window"}


def with_qwen_windows(config: RawConfig, parsed: ModelConfig) -> ModelConfig:
    """Windows only with `use_sliding_window`, from layer `max_window_layers` on."""
    if not fields.boolean(config, "use_sliding_window"):
        return parsed
    first = config.get("max_window_layers", 28)
    sliding = [layer >= first for layer in range(parsed.layers)]
    windows = fields.windows({"sliding_window": 4096, **config}, parsed.layers, sliding=sliding)
    blocks = zip(parsed.blocks, windows, strict=True)
    return parsed.with_blocks([replace(block, window=window) for block, window in blocks])
