"""Models that have shapes but no weights on disk, to measure what running them takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.tiles import Tiles

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 3000,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
RAW: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mha": {**_LLAMA, "num_key_value_heads": 8},
    "mqa": {**_LLAMA, "num_key_value_heads": 1},
    "narrow_ffn": {**_LLAMA, "hidden_size": 512, "intermediate_size": 700},
    "window": {**_LLAMA, "model_type": "mistral", "sliding_window": 32},
    "gemma2": {
        **_LLAMA,
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "sliding_window": 64,
    },
    "phi3": {**_LLAMA, "model_type": "phi3", "num_key_value_heads": 8},
    "mixtral": {
        **_LLAMA,
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 256,
        "ffn_dim": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "vocab_size": 3000,
        "max_position_embeddings": 512,
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 256,
        "activation_function": "relu",
        "enable_bias": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 256,
        "n_layer": 1,
        "n_head": 8,
        "vocab_size": 3000,
        "n_positions": 512,
        "activation_function": "gelu_new",
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "vocab_size": 3000,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "rotary_pct": 0.25,
    },
}


def shape(name: str, **changes: Any) -> ModelConfig:
    """A model's shape."""
    return parse_config({**RAW[name], **changes})


class MadeUpWeights:
    """A `WeightSource` whose numbers are all alike, so that every token takes the same experts."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_tensors(config)

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        return torch.full(self._shapes[name], 0.01, device=device, dtype=dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        return torch.full((stop - start, *self._shapes[name][1:]), 0.01, device=device, dtype=dtype)


def stream(config: ModelConfig, tiles: Tiles) -> ModelStream:
    """The model with made-up weights."""
    return ModelStream(config, MadeUpWeights(config), torch.device("cpu"), tiles)
