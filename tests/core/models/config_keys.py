"""Models of every family whose configuration differs from the default in one key."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as hf

COMMON = {
    "vocab_size": 64,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHAPE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
OPT = {
    **COMMON,
    "hidden_size": 32,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "init_std": 0.2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 64,
    "n_layer": 3,
    "n_positions": 64,
    "n_embd": 32,
    "n_head": 4,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NEOX = {**SHAPE, "hidden_size": 64, "rotary_pct": 0.5}
del NEOX["num_key_value_heads"]
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, SHAPE),
    "mistral": (hf.MistralConfig, SHAPE),
    "qwen2": (hf.Qwen2Config, SHAPE),
    "qwen3": (hf.Qwen3Config, {**SHAPE, "head_dim": 8}),
    "gemma2": (hf.Gemma2Config, {**SHAPE, "head_dim": 8}),
    "gemma3": (hf.Gemma3TextConfig, {**SHAPE, "head_dim": 8}),
    "phi3": (hf.Phi3Config, SHAPE),
    "opt": (hf.OPTConfig, OPT),
    "gpt2": (hf.GPT2Config, GPT2),
    "gpt_neox": (hf.GPTNeoXConfig, NEOX),
    "mixtral": (hf.MixtralConfig, {**SHAPE, "head_dim": 8, "num_local_experts": 4}),
    "qwen3_moe": (
        hf.Qwen3MoeConfig,
        {**SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}

# Only for training, generation, or heads other than the language model's. All are set at once.
WITHOUT_EFFECT = {
    "use_cache": False,
    "initializer_range": 0.1,
    "init_std": 0.1,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "pretraining_tp": 2,
    "attention_dropout": 0.5,
    "hidden_dropout": 0.5,
    "classifier_dropout": 0.5,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "dropout": 0.5,
    "layerdrop": 0.5,
    "summary_type": "mean",
    "summary_use_proj": False,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "summary_first_dropout": 0.5,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
    "router_jitter_noise": 0.5,
    "is_decoder": True,
}
SCALED = {"rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 16}
LLAMA3 = {**SCALED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1.5, 3.0, 5.0, 7.0],
    "original_max_position_embeddings": 16,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0},
    {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0},
    {**SCALED, "rope_type": "yarn"},
    {**SCALED, "rope_type": "yarn", "beta_fast": 4.0, "beta_slow": 2.0, "truncate": False},
    {**SCALED, "rope_type": "yarn", "mscale": 2.0, "mscale_all_dim": 0.5},
    {**SCALED, "rope_type": "yarn", "attention_factor": 1.5},
    LLAMA3,
    LONGROPE,
    {**LONGROPE, "factor": 2.0},
    {**LONGROPE, "attention_factor": 1.5},
    {**LONGROPE, "original_max_position_embeddings": 50},  # more than the sequences have
]
SLIDING_SECOND = ["full_attention", "sliding_attention", "full_attention"]
WINDOWED = {"use_sliding_window": True, "sliding_window": 5}
VALUES: dict[str, list[Any]] = {
    "vocab_size": [80],
    "hidden_size": [96],
    "n_embd": [64],
    "intermediate_size": [40],
    "moe_intermediate_size": [32],
    "ffn_dim": [40],
    "n_inner": [40],
    "num_hidden_layers": [2],
    "n_layer": [2],
    "num_attention_heads": [2],
    "n_head": [2],
    "num_key_value_heads": [1, 4],
    "head_dim": [16],
    "hidden_act": ["relu", "gelu", "gelu_pytorch_tanh"],
    "hidden_activation": ["relu", "silu"],
    "activation_function": ["gelu", "gelu_new"],
    "max_position_embeddings": [128],
    "n_positions": [128],
    "original_max_position_embeddings": [16],
    "rms_norm_eps": [0.1],
    "layer_norm_eps": [0.1],
    "layer_norm_epsilon": [0.1],
    "tie_word_embeddings": [True, False],
    "attention_bias": [True, False],
    "mlp_bias": [True],
    "rope_parameters": ROPES,
    "sliding_window": [5],
    "use_sliding_window": [True],
    "max_window_layers": [1],
    "layer_types": [SLIDING_SECOND],
    "_sliding_window_pattern": [2],
    "query_pre_attn_scalar": [3],
    "attn_logit_softcapping": [None, 3.0],
    "final_logit_softcapping": [None, 3.0],
    "use_bidirectional_attention": [True],
    "do_layer_norm_before": [False],
    "_remove_final_layer_norm": [True],
    "word_embed_proj_dim": [16],
    "enable_bias": [False],
    "layer_norm_elementwise_affine": [False],
    "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "add_cross_attention": [True],
    "use_parallel_residual": [False],
    "num_local_experts": [3],
    "num_experts_per_tok": [3],
    "decoder_sparse_step": [2],
    "norm_topk_prob": [True],
    "mlp_only_layers": [[1]],
}
# Of no config class, but transformers obeys them wherever they are found.
EVERYWHERE: dict[str, list[Any]] = {
    "is_causal": [False],
    "partial_rotary_factor": [0.5],
    "layer_types": [SLIDING_SECOND],
}
TOGETHER = {"sliding_window": WINDOWED, "max_window_layers": WINDOWED, "layer_types": WINDOWED}
TOGETHER["use_sliding_window"] = WINDOWED


def keys_of(config_class: Any, options: dict[str, Any]) -> list[str]:
    """What the class itself adds to the keys that all models have."""
    general = set(hf.PretrainedConfig().to_dict()) - {"tie_word_embeddings"}
    return [key for key in config_class(**options).to_dict() if key not in general]


def changes_of(family: str) -> list[dict[str, Any]]:
    config_class, options = FAMILIES[family]
    keys = keys_of(config_class, options)
    values = {key: VALUES[key] for key in keys if key not in WITHOUT_EFFECT}
    values |= {key: found for key, found in EVERYWHERE.items() if key not in values}
    changes: list[dict[str, Any]] = [{k: v for k, v in WITHOUT_EFFECT.items() if k in keys}]
    for key, alternatives in values.items():
        changes += [{**TOGETHER.get(key, {}), key: value} for value in alternatives]
    return changes


def model_of(family: str, changes: dict[str, Any]) -> Any | None:
    """A random model, or None if transformers itself refuses such a config."""
    config_class, options = FAMILIES[family]
    pattern = changes.get("_sliding_window_pattern")
    named = {"sliding_window_pattern": pattern} if pattern else changes
    try:
        config = config_class(**copy.deepcopy({**options, **named}))
    except Exception:
        return None
    implementation = "eager" if family.startswith("gemma") else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()
