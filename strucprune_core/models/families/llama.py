"""llama and mistral: pre-norm, RMSNorm, rotary positions, grouped queries, gated FFN."""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import (
    LayerConfig,
    LayerNames,
    ModelConfig,
    ModelNames,
    NormConfig,
)
from strucprune_core.models.fields import RawConfig

LAYER_NAMES = LayerNames(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
)
MODEL_NAMES = ModelNames(
    embedding="model.embed_tokens.weight",
    layer="model.layers.{}.",
    final_norm="model.norm",
    head="lm_head.weight",
)


def parse_llama(config: RawConfig) -> ModelConfig:
    """Llama, and models with its architecture under other names."""
    attention_bias = fields.boolean(config, "attention_bias")
    parsed = parse_llama_like(
        config,
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        ffn_bias=fields.boolean(config, "mlp_bias"),
    )
    return with_windows(parsed, fields.windows_alike(config, None, parsed.layers))


def parse_mistral(config: RawConfig) -> ModelConfig:
    """Mistral: llama with a sliding window in all layers."""
    parsed = parse_llama_like(config, kv_heads=8, max_positions=131072)
    window = fields.window(config, default=4096)
    return with_windows(parsed, fields.windows_alike(config, window, parsed.layers))


def with_windows(parsed: ModelConfig, windows: list[int | None]) -> ModelConfig:
    """The model with the attention window of each layer."""
    blocks = zip(parsed.blocks, windows, strict=True)
    return parsed.with_blocks([replace(block, window=window) for block, window in blocks])


def parse_llama_like(
    config: RawConfig,
    *,
    names: LayerNames = LAYER_NAMES,
    qkv_bias: bool = False,
    attention_output_bias: bool = False,
    ffn_bias: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    eps: float = 1e-6,
    theta: float = 10_000.0,
    max_positions: int = 2048,
    tie: bool = False,
    partial: bool = False,
) -> ModelConfig:
    """A model with llama's keys and tensor names, and no window.

    Args:
        config: config.json.
        names: A layer's modules.
        qkv_bias: Whether queries, keys and values have a bias.
        attention_output_bias: Whether the attention output has one.
        ffn_bias: Whether the FFN's matrices have one.
        head_dim: Default of the family; None divides the hidden size evenly.
        kv_heads: Default of the family; None is one for each query head.
        eps: Default of the family.
        theta: Default of the family.
        max_positions: Default of the family.
        tie: Default of the family.
        partial: Whether the family can rotate a part of each head.
    """
    layers = fields.integer(config, "num_hidden_layers", fields.MAX_LAYERS)
    heads = fields.integer(config, "num_attention_heads", fields.MAX_WIDTH)
    hidden_size = fields.integer(config, "hidden_size", fields.MAX_WIDTH)
    width = fields.integer(config, "intermediate_size", fields.MAX_WIDTH)
    head_dim = fields.head_dim(config, hidden_size, heads, default=head_dim)
    groups = fields.kv_heads(config, heads, default=kv_heads)
    context = fields.integer(
        config, "max_position_embeddings", fields.MAX_POSITIONS, default=max_positions
    )
    rotary = fields.rope_section(config)
    if not partial:
        fields.refuse(rotary, "partial_rotary_factor", 1.0, words="partial rotary positions")
    share = fields.number(rotary, "partial_rotary_factor", default=1.0)
    dims = fields.rotated_dims(head_dim, share)
    rope = fields.rope(rotary, dims=dims, context=context, theta=theta)
    return ModelConfig(
        model_type=str(config["model_type"]),
        family=str(config["model_type"]).removeprefix("strucprune_"),
        names=MODEL_NAMES,
        blocks=(LayerConfig(names, heads, groups, (width,), None, rope),) * layers,
        vocab_size=fields.integer(config, "vocab_size", fields.MAX_VOCABULARY),
        hidden_size=hidden_size,
        embedding_size=hidden_size,
        head_dim=head_dim,
        rotary_dims=dims,
        max_position_embeddings=context,
        norm=NormConfig("rms", fields.number(config, "rms_norm_eps", default=eps)),
        activation=fields.activation(config, "hidden_act", default="silu"),
        residual="pre_norm",
        tie_word_embeddings=fields.boolean(config, "tie_word_embeddings", default=tie),
        qkv_bias=qkv_bias,
        attention_output_bias=attention_output_bias,
        ffn_bias=ffn_bias,
        attention_scale=head_dim**-0.5,
        dtype=fields.dtype(config),
    )
