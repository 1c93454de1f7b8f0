"""opt: LayerNorm, learned positions, biases, ReLU. The 350m: post-norm, projected embeddings."""

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
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    up="fc1",
    down="fc2",
    attention_norm="self_attn_layer_norm",
    ffn_norm="final_layer_norm",
)
POSITION_OFFSET = 2  # The table's first rows were kept for padding.
LAYER_NORM_EPS = 1e-5


def parse(config: RawConfig) -> ModelConfig:
    """OPT, 125m to 175b."""
    fields.refuse(config, "layer_norm_elementwise_affine", True, words="a LayerNorm without weight")
    fields.refuse(config, "_remove_final_layer_norm", False, words="OPT without its last norm")
    layers = fields.integer(config, "num_hidden_layers", fields.MAX_LAYERS)
    heads = fields.integer(config, "num_attention_heads", fields.MAX_WIDTH)
    d = fields.integer(config, "hidden_size", fields.MAX_WIDTH)
    width = fields.integer(config, "ffn_dim", fields.MAX_WIDTH)
    embedding_size = fields.integer(config, "word_embed_proj_dim", fields.MAX_WIDTH, default=d)
    pre_norm = fields.boolean(config, "do_layer_norm_before", default=True)
    bias = fields.boolean(config, "enable_bias", default=True)
    head_dim = fields.head_dim({}, d, heads)
    projected = embedding_size != d
    return ModelConfig(
        model_type=str(config["model_type"]),
        family="opt",
        names=ModelNames(
            embedding="model.decoder.embed_tokens.weight",
            layer="model.decoder.layers.{}.",
            final_norm="model.decoder.final_layer_norm" if pre_norm else None,
            head="lm_head.weight",
            positions="model.decoder.embed_positions.weight",
            project_in="model.decoder.project_in.weight" if projected else None,
            project_out="model.decoder.project_out.weight" if projected else None,
        ),
        blocks=(LayerConfig(LAYER_NAMES, heads, heads, (width,)),) * layers,
        vocab_size=fields.integer(config, "vocab_size", fields.MAX_VOCABULARY),
        hidden_size=d,
        embedding_size=embedding_size,
        head_dim=head_dim,
        rotary_dims=0,
        max_position_embeddings=fields.integer(
            config, "max_position_embeddings", fields.MAX_POSITIONS, default=2048
        ),
        norm=NormConfig("layer", LAYER_NORM_EPS),
        activation=fields.activation(config, "activation_function", default="relu"),
        residual="pre_norm" if pre_norm else "post_norm",
        tie_word_embeddings=fields.boolean(config, "tie_word_embeddings", default=True),
        qkv_bias=bias,
        attention_output_bias=bias,
        ffn_bias=bias,
        attention_scale=head_dim**-0.5,
        dtype=fields.dtype(config),
        position_offset=POSITION_OFFSET,
    )
