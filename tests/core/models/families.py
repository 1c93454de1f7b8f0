"""A tiny random model of each family, made and saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.support.text import make_text
from tests.support.tiny_llama import save_tokenizer

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OPT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GPT2 = {
    "vocab_size": 512,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MHA = {"num_key_value_heads": 4}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0},
}

PHI3 = {key: value for key, value in SHAPE.items() if key != "head_dim"}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.5, 3.0, 5.0],
}

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, SHAPE),
    "llama-mha": (hf.LlamaConfig, {**SHAPE, **MHA}),
    "llama-mqa": (hf.LlamaConfig, {**SHAPE, "num_key_value_heads": 1}),
    "llama-biases": (
        hf.LlamaConfig,
        {**SHAPE, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "mistral": (hf.MistralConfig, {**SHAPE, "sliding_window": None}),
    "mistral-window": (hf.MistralConfig, {**SHAPE, "sliding_window": 9}),
    "qwen2": (hf.Qwen2Config, SHAPE),
    "qwen2-window": (
        hf.Qwen2Config,
        {**SHAPE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": (hf.Qwen3Config, {**SHAPE, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        hf.Gemma2Config,
        {**SHAPE, "sliding_window": 9, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        {**SHAPE, "num_hidden_layers": 7, "sliding_window": 9, "rope_parameters": GEMMA3_ROPE},
    ),
    "phi3": (hf.Phi3Config, PHI3),
    "phi3-long": (
        hf.Phi3Config,
        {**PHI3, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
    ),
    "opt": (hf.OPTConfig, OPT),
    "opt-350m": (
        hf.OPTConfig,
        {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "gpt2": (hf.GPT2Config, GPT2),
    "gpt_neox": (hf.GPTNeoXConfig, {**SHAPE, **MHA}),
    "gpt_neox-serial": (
        hf.GPTNeoXConfig,
        {
            **SHAPE,
            **MHA,
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "attention_bias": False,
        },
    ),
    "mixtral": (
        hf.MixtralConfig,
        {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen3_moe": (hf.Qwen3MoeConfig, {**SHAPE, **MOE, "norm_topk_prob": True}),
    "qwen3_moe-mixed": (hf.Qwen3MoeConfig, {**SHAPE, **MOE, "mlp_only_layers": [1]}),
}


def random_model(variant: str) -> Any:
    """A model of a variant with random weights, norms and biases too."""
    config_class, options = VARIANTS[variant]
    # Only eager attention applies gemma's soft cap.
    return _random(config_class(**options), "eager" if variant.startswith("gemma") else "sdpa")


def saved_variant(variant: str, directory: Path) -> Path:
    """The random model of a variant, saved with a tokenizer; the directory."""
    return _save(random_model(variant), directory)


def saved(config: Any, directory: Path) -> Path:
    """A model of a configuration with random weights, saved with a tokenizer; the directory."""
    return _save(_random(config, "sdpa"), directory)


def _save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    save_tokenizer(directory, text=make_text(), vocab=model.config.vocab_size)
    return directory


def _random(config: Any, implementation: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # transformers begins with ones and zeros
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()
