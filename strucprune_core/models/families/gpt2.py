"""gpt2: LayerNorm, learned positions, biases, matrices stored (in x out)."""

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
    query_key_value="attn.c_attn",
    attention_output="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    attention_norm="ln_1",
    ffn_norm="ln_2",
)


def parse(config: RawConfig) -> ModelConfig:
    """GPT-2, small to xl."""
    fields.refuse(config, "scale_attn_by_inverse_layer_idx", False, words="a scale by layer")
    fields.refuse(config, "scale_attn_weights", True, words="unscaled attention")
    layers = fields.integer(config, "n_layer", fields.MAX_LAYERS)
    heads = fields.integer(config, "n_head", fields.MAX_WIDTH)
    d = fields.integer(config, "n_embd", fields.MAX_WIDTH)
    width = fields.integer(config, "n_inner", fields.MAX_WIDTH, default=4 * d)
    head_dim = fields.head_dim({}, d, heads)
    return ModelConfig(
        model_type=str(config["model_type"]),
        family="gpt2",
        names=ModelNames(
            embedding="transformer.wte.weight",
            layer="transformer.h.{}.",
            final_norm="transformer.ln_f",
            head="lm_head.weight",
            positions="transformer.wpe.weight",
        ),
        blocks=(LayerConfig(LAYER_NAMES, heads, heads, (width,)),) * layers,
        vocab_size=fields.integer(config, "vocab_size", fields.MAX_VOCABULARY),
        hidden_size=d,
        embedding_size=d,
        head_dim=head_dim,
        rotary_dims=0,
        max_position_embeddings=fields.integer(
            config, "n_positions", fields.MAX_POSITIONS, default=1024
        ),
        norm=NormConfig("layer", fields.number(config, "layer_norm_epsilon", default=1e-5)),
        activation=fields.activation(config, "activation_function", default="gelu_new"),
        residual="pre_norm",
        tie_word_embeddings=fields.boolean(config, "tie_word_embeddings", default=True),
        qkv_bias=True,
        attention_output_bias=True,
        ffn_bias=True,
        attention_scale=head_dim**-0.5,
        dtype=fields.dtype(config),
        transposed=True,
    )
