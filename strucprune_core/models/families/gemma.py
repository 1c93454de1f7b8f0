"""gemma2 and gemma3 (text): norms around attention and FFN, scaled embeddings, soft caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig, NormConfig, RopeConfig
from strucprune_core.models.families.llama import LAYER_NAMES, parse_llama_like, with_windows
from strucprune_core.models.fields import RawConfig

GEMMA2_LAYER_NAMES: LayerNames = replace(
    LAYER_NAMES,
    attention_output_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    ffn_output_norm="post_feedforward_layernorm",
)
GEMMA3_LAYER_NAMES: LayerNames = replace(
    GEMMA2_LAYER_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
)
GEMMA3_PATTERN = 6  # Every sixth layer sees everything.


def parse_gemma2(config: RawConfig) -> ModelConfig:
    """Gemma 2: every other layer has a window; logits are capped."""
    parsed = _parse(config, GEMMA2_LAYER_NAMES, lambda layer: layer % 2 == 0, max_positions=8192)
    return replace(
        parsed,
        attention_soft_cap=_cap(config, "attn_logit_softcapping", 50.0),
        logit_soft_cap=_cap(config, "final_logit_softcapping", 30.0),
    )


def parse_gemma3(config: RawConfig) -> ModelConfig:
    """Gemma 3 (text): local layers rotate at another speed than global ones."""
    # The class has the key, but its attention ignores it.
    fields.refuse(config, "attn_logit_softcapping", words="a soft cap on attention")
    pattern = GEMMA3_PATTERN
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        pattern = fields.integer(config, key, fields.MAX_LAYERS, default=pattern)
    parsed = _parse(
        {**config, "rope_parameters": None, "rope_scaling": None},
        GEMMA3_LAYER_NAMES,
        lambda layer: (layer + 1) % pattern != 0,
        max_positions=131072,
    )
    local, everywhere = _gemma3_ropes(config, parsed)
    blocks = [
        replace(block, rope=local if block.window is not None else everywhere)
        for block in parsed.blocks
    ]
    return replace(
        parsed,
        blocks=tuple(blocks),
        logit_soft_cap=_cap(config, "final_logit_softcapping", None),
    )


def _parse(
    config: RawConfig, names: LayerNames, slides: Callable[[int], bool], *, max_positions: int
) -> ModelConfig:
    bias = fields.boolean(config, "attention_bias")
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    parsed = parse_llama_like(
        {**config, "hidden_act": activation},
        names=names,
        qkv_bias=bias,
        attention_output_bias=bias,
        head_dim=256,
        kv_heads=4,
        max_positions=max_positions,
        tie=True,
    )
    sliding = [slides(layer) for layer in range(parsed.layers)]
    windows = fields.windows_by_layer(config, fields.window(config, default=4096), sliding)
    scalar = fields.number(config, "query_pre_attn_scalar", default=256)
    return replace(
        with_windows(parsed, windows),
        norm=NormConfig("rms_plus_one", parsed.norm.eps),
        embedding_scale=parsed.hidden_size**0.5,
        attention_scale=scalar**-0.5,
    )


def _gemma3_ropes(config: RawConfig, parsed: ModelConfig) -> tuple[RopeConfig, RopeConfig]:
    """Rotations of local and of global layers: in new files by kind, in old ones by key."""
    by_kind = fields.section(config, "rope_parameters")
    local = fields.section(by_kind, "sliding_attention")
    everywhere = fields.section(by_kind, "full_attention") | fields.section(config, "rope_scaling")
    local.setdefault("rope_theta", config.get("rope_local_base_freq"))
    everywhere.setdefault("rope_theta", config.get("rope_theta"))
    dims, context = parsed.rotary_dims, parsed.max_position_embeddings
    for rotary in (local, everywhere):
        fields.refuse(rotary, "partial_rotary_factor", 1.0, words="partial rotary positions")
    return (
        fields.rope(local, dims=dims, context=context),
        fields.rope(everywhere, dims=dims, context=context, theta=1_000_000.0),
    )


def _cap(config: RawConfig, key: str, default: float | None) -> float | None:
    return fields.optional_number(config, key) if key in config else default
