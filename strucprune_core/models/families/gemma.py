"""gemma2 and gemma3 (text): norms around attention and FFN, scaled embeddings, soft caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig, NormConfig, RopeConfig
from strucprune_core.models.families.llama import LAYER_NAMES, parse_llama_like
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
    fields.refuse(config, "use_bidirectional_attention", False, words="bidirectional attention")
    parsed = _parse(
        config,
        GEMMA3_LAYER_NAMES,
        lambda layer: (layer + 1) % GEMMA3_PATTERN != 0,
        max_positions=131072,
    )
    local, everywhere = _gemma3_ropes(config)
    blocks = [
        replace(block, rope=local if block.window is not None else everywhere)
        for block in parsed.blocks
    ]
    return replace(
        parsed,
        blocks=tuple(blocks),
        attention_soft_cap=_cap(config, "attn_logit_softcapping", None),
        logit_soft_cap=_cap(config, "final_logit_softcapping", None),
    )


def _parse(
    config: RawConfig, names: LayerNames, slides: Callable[[int], bool], *, max_positions: int
) -> ModelConfig:
    bias = fields.boolean(config, "attention_bias")
    rope_free = {k: v for k, v in config.items() if k not in ("rope_parameters", "rope_scaling")}
    scalar_rope = config if config.get("model_type") == "gemma2" else rope_free
    raw = {**scalar_rope, "hidden_act": config.get("hidden_activation"), "sliding_window": None}
    parsed = parse_llama_like(
        {**raw, "hidden_act": raw["hidden_act"] or "gelu_pytorch_tanh"},
        names=names,
        qkv_bias=bias,
        attention_output_bias=bias,
        sliding=False,
        head_dim=256,
        kv_heads=4,
        max_positions=max_positions,
        tie=True,
    )
    layers = parsed.layers
    windows = fields.windows(
        {"sliding_window": 4096, **config}, layers, sliding=[slides(n) for n in range(layers)]
    )
    scalar = fields.number(config, "query_pre_attn_scalar", default=256)
    return replace(
        parsed,
        blocks=tuple(
            replace(block, window=window)
            for block, window in zip(parsed.blocks, windows, strict=True)
        ),
        norm=NormConfig("rms_plus_one", parsed.norm.eps),
        embedding_scale=parsed.hidden_size**0.5,
        attention_scale=scalar**-0.5,
    )


def _gemma3_ropes(config: RawConfig) -> tuple[RopeConfig, RopeConfig]:
    """Rotations of local and of global layers: in new files by kind, in old ones by key."""
    section = config.get("rope_parameters")
    if isinstance(section, dict) and isinstance(section.get("full_attention"), dict):
        return (
            fields.rope(section.get("sliding_attention") or {}),
            fields.rope(section["full_attention"], theta=1_000_000.0),
        )
    scaling = config.get("rope_scaling") or {}
    everywhere = {**scaling, "rope_theta": config.get("rope_theta")}
    local = {"rope_theta": config.get("rope_local_base_freq")}
    return fields.rope(local), fields.rope(everywhere, theta=1_000_000.0)


def _cap(config: RawConfig, key: str, default: float | None) -> float | None:
    return fields.optional_number(config, key) if key in config else default
