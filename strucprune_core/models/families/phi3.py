"""phi3: queries, keys and values in one matrix, gate and up in another."""

from __future__ import annotations

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models import fields
from strucprune_core.models.config import LayerNames, ModelConfig
from strucprune_core.models.families.llama import parse_llama_like, with_windows
from strucprune_core.models.fields import RawConfig

LAYER_NAMES = LayerNames(
    query_key_value="self_attn.qkv_proj",
    attention_output="self_attn.o_proj",
    gate_up="mlp.gate_up_proj",
    down="mlp.down_proj",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
)
_ORIGINAL_CONTEXT = 4096


def parse(config: RawConfig) -> ModelConfig:
    """Phi-3, Phi-3.5 and Phi-4, with short or long context."""
    rotary = fields.rope_section(config)
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind not in ("default", "longrope"):
        raise UnsupportedArchitecture(
            f"rope type {shown(kind)} is not supported for phi3",
            field=fields.FIELD,
            remedy="Use the model's current config.json, which calls it 'longrope'.",
        )
    original = config.get("original_max_position_embeddings", _ORIGINAL_CONTEXT)
    parsed = parse_llama_like(
        {**config, "original_max_position_embeddings": original},
        names=LAYER_NAMES,
        eps=1e-5,
        max_positions=4096,
        partial=True,
    )
    window = fields.window(config)
    return with_windows(parsed, fields.windows_alike(config, window, parsed.layers))
