"""gpt_neox (Pythia): attention and FFN side by side, partial rotary positions, fused q, k, v."""

from __future__ import annotations

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
    query_key_value="attention.query_key_value",
    attention_output="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
)


def parse(config: RawConfig) -> ModelConfig:
    """GPT-NeoX and Pythia."""
    layers = fields.integer(config, "num_hidden_layers", fields.MAX_LAYERS)
    heads = fields.integer(config, "num_attention_heads", fields.MAX_WIDTH)
    d = fields.integer(config, "hidden_size", fields.MAX_WIDTH)
    width = fields.integer(config, "intermediate_size", fields.MAX_WIDTH)
    head_dim = fields.head_dim({}, d, heads)
    context = fields.integer(config, "max_position_embeddings", fields.MAX_POSITIONS, default=2048)
    rotary = fields.rope_section(config, theta_key="rotary_emb_base", partial_key="rotary_pct")
    share = fields.number(rotary, "partial_rotary_factor", default=0.25)
    dims = fields.rotated_dims(head_dim, share)
    rope = fields.rope(rotary, dims=dims, context=context)
    bias = fields.boolean(config, "attention_bias", default=True)
    parallel = fields.boolean(config, "use_parallel_residual", default=True)
    return ModelConfig(
        model_type=str(config["model_type"]),
        family="gpt_neox",
        names=ModelNames(
            embedding="gpt_neox.embed_in.weight",
            layer="gpt_neox.layers.{}.",
            final_norm="gpt_neox.final_layer_norm",
            head="embed_out.weight",
        ),
        blocks=(LayerConfig(LAYER_NAMES, heads, heads, (width,), None, rope),) * layers,
        vocab_size=fields.integer(config, "vocab_size", fields.MAX_VOCABULARY),
        hidden_size=d,
        embedding_size=d,
        head_dim=head_dim,
        rotary_dims=dims,
        max_position_embeddings=context,
        norm=NormConfig("layer", fields.number(config, "layer_norm_eps", default=1e-5)),
        activation=fields.activation(config, "hidden_act", default="gelu"),
        residual="parallel" if parallel else "pre_norm",
        tie_word_embeddings=fields.boolean(config, "tie_word_embeddings"),
        qkv_bias=bias,
        attention_output_bias=bias,
        ffn_bias=True,
        attention_scale=head_dim**-0.5,
        dtype=fields.dtype(config),
        qkv_interleaved=True,
    )
