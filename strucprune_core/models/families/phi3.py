"""phi3: queries, keys and values in one matrix, gate and up in another."""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig
from strucprune_core.models.families.llama import parse_llama_like
from strucprune_core.models.fields import RawConfig

LAYER_NAMES = LayerNames(
    query_key_value="self_attn.qkv_proj",
    attention_output="self_attn.o_proj",
    gate_up="mlp.gate_up_proj",
    down="mlp.down_proj",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
)


def parse(config: RawConfig) -> ModelConfig:
    """Phi-3 and Phi-4 with `default` rotary positions."""
    parsed = parse_llama_like(config, names=LAYER_NAMES, sliding=True, eps=1e-5, max_positions=4096)
    return replace(parsed, tie_word_embeddings=fields.boolean(config, "tie_word_embeddings"))
