"""A tiny model of any architecture that transformers has, with random weights.

Only sizes change: what a layer is made of, and in which order, stays as the class has it by
default. Sizes of single heads stay too, because rotary positions and latent attention depend on
them.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from strucprune_core.models.generic.modules import model_of

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
}
# The last layers attend to keys and values of earlier ones, of both types.
_SHARED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 16,
}
_GEMMA3N = {
    **_SHARED,
    "intermediate_size": 48,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
_GEMMA4 = {**_SHARED, "head_dim": 16, "global_head_dim": 32}
# Sizes by the names that config classes give them; the first pattern that fits a key decides.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"^(vocab_size|n_vocab|vocab_size_per_layer_input|encoder_hash_byte_group_vocab)$", 128),
    (
        r"^(hidden_size|n_embd|d_model|dim|model_dim|word_embed_proj_dim|lru_width|embedding_size|emb_dim)$",
        64,
    ),
    (r"^(num_hidden_layers|n_layers?|num_layers|decoder_layers)$", 4),
    (r"^(encoder_layers|num_nextn_predict_layers|num_mtp_modules)$", 1),
    (r"^(num_attention_heads|n_heads?|decoder_attention_heads|encoder_attention_heads)$", 4),
    (r"^(num_key_value_heads|n_head_kv|num_kv_heads|attention_num_key_value_heads)$", 2),
    (r"intermediate_size|ffn_dim|n_inner|ffn_hidden_size|d_?ff$|dim_ff|inner_dim|d_inner", 48),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts)$", 4),
    (r"^(num_experts_per_tok|num_experts_per_token|moe_k|moe_topk|moe_top_k|top_k_experts)$", 2),
    (r"^(n_group|topk_group|num_expert_group)$", 1),
    (r"^(first_k_dense_replace|num_dense_layers|moe_layer_start_index)$", 1),
    (r"^(q|kv|o)_lora_rank$", 32),
    # Heads of recurrent mixers have no rotary positions; wide ones only cost time.
    (r"^(linear_num_(key_|value_)?heads|index_n_heads)$", 4),
    (r"^(mamba_n_heads)$", 8),
    (r"^(linear_(key_|value_)?head_dim|mamba_d_head|mamba_d_state)$", 16),
)
# What a class needs beside the sizes above, where these or its defaults do not fit together.
_OTHERS: dict[str, dict[str, Any]] = {
    "chameleon": {
        "vocabulary_map": {"<image>": 100, "IMGIMGA": 101},
        "vq_config": {"base_channels": 32, "num_embeddings": 16},
    },
    "codegen": {"rotary_dim": 8},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_experts_per_tok": 2,
        }
    },
    "dots1": {
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "dots3_note": {
        "num_key_value_heads": 4,
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3": {
        "vocabulary_map": {"<image>": 100, "<|extra_200|>": 101, "<|visual token 000000|>": 102},
        "vq_config": {"base_channels": 32, "codebook_size": 16},
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}}},
    "falcon_h1": {"mamba_d_head": 8, "mamba_d_ssm": 64},
    "fast_vlm": {"vision_config": {"hidden_size": 64}},
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma3n_text": _GEMMA3N,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "glm46v": _MROPE,
    "glm4v": _MROPE,
    "glm4v_moe": {
        "text_config": {
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
        }
    },
    "glm_ocr": _MROPE,
    "glmga": _MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "4/8"},
    "granite_docling": {"vision_config": {"out_hidden_size": 64}},
    "granitemoeshared": {"shared_intermediate_size": 48},
    "helium": {"head_dim": 16, "num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {
        "text_config": {
            "head_dim": 16,
            "rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]},
        }
    },
    "inkling2": {"vision_config": {"text_hidden_size": 64}},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64}},
    "nemotron_h": {"mamba_num_heads": 4, "n_groups": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": 64}}},
    "qwen2_5_omni_thinker": _MROPE,
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": {**_MROPE, "vision_config": {"depth": 2, "embed_dim": 64}},
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 48]},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
}
# Special tokens of a large vocabulary move to the end of the tiny one.
_TOKENS = {"pad_token_id": 125, "bos_token_id": 126, "eos_token_id": 127}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_hidden_layers": 8},
)
"""Changes to try where the usual sizes do not fit together."""


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A config of an architecture in tiny sizes."""
    return _tiny(CONFIG_MAPPING[model_type], _OTHERS.get(model_type, {}) | changes, {})


def _tiny(cls: Any, changes: dict[str, Any], own: dict[str, Any]) -> Any:
    """A tiny config with changes to keys that it has by default, and with its own keys."""
    default = cls()
    known = default.to_dict()
    sizes: dict[str, Any] = {}
    parts = getattr(cls, "sub_configs", {})
    for key, part in parts.items():
        inner = getattr(default, key, None)
        if inner is not None and hasattr(inner, "to_dict"):
            sizes[key] = _tiny(type(inner), changes, changes.get(key, {}))
        elif (inner is not None or key in changes) and hasattr(part, "model_type"):
            sizes[key] = _tiny(part, changes, changes.get(key, {}))
    for key, value in known.items():
        if key in _TOKENS and isinstance(value, int):
            sizes[key] = min(value, _TOKENS[key])
        elif isinstance(value, int) and not isinstance(value, bool):
            for pattern, size in _SIZES:
                if re.search(pattern, key):
                    sizes[key] = min(size, value) if value > 0 else value
                    break
    if "is_decoder" in known:  # Classes of encoders are decoders only then.
        sizes["is_decoder"] = True
    sizes |= {key: value for key, value in changes.items() if key in known.keys() - parts}
    return cls(**(sizes | own))


def tiny_model(config: Any, seed: int = 0) -> Any:
    """The model of a config, float32, with random weights in every parameter."""
    torch.manual_seed(seed)
    model = model_of(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif parameter.is_floating_point() and "norm" not in name:
            nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=0.2)
    return model.eval()


def is_encoder(config: Any) -> bool:
    """Whether the class of a tiny config sees what follows a token, unless that says not to."""
    if not getattr(config, "is_decoder", False):
        return False
    plain = deepcopy(config)
    plain.is_decoder = False
    return not model_of(plain).config.is_decoder
