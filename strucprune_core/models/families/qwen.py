"""qwen2 (a bias on queries, keys and values) and qwen3 (a norm on queries and keys)."""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig
from strucprune_core.models.families.llama import LAYER_NAMES, parse_llama_like, with_windows
from strucprune_core.models.fields import RawConfig

QWEN3_LAYER_NAMES: LayerNames = replace(
    LAYER_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)


def parse_qwen2(config: RawConfig) -> ModelConfig:
    """Qwen2 and Qwen2.5."""
    parsed = parse_llama_like(config, qkv_bias=True, kv_heads=32, max_positions=32768)
    return with_windows(parsed, _windows(config, parsed.layers))


def parse_qwen3(config: RawConfig) -> ModelConfig:
    """Qwen3."""
    bias = fields.boolean(config, "attention_bias")
    parsed = parse_llama_like(
        config,
        names=QWEN3_LAYER_NAMES,
        qkv_bias=bias,
        attention_output_bias=bias,
        head_dim=128,
        kv_heads=32,
        max_positions=32768,
    )
    return with_windows(parsed, _windows(config, parsed.layers))


def qwen_window(config: RawConfig) -> int | None:
    """The window, which counts only with `use_sliding_window`."""
    used = fields.boolean(config, "use_sliding_window")
    return fields.window(config, default=4096) if used else None


def _windows(config: RawConfig, layers: int) -> list[int | None]:
    """The window of each layer: from `max_window_layers` on."""
    window = qwen_window(config)
    first = fields.whole_number(config, "max_window_layers", fields.MAX_LAYERS, default=28)
    sliding = [window is not None and layer >= first for layer in range(layers)]
    return fields.windows_by_layer(config, window, sliding)
