"""The llama family: pre-norm, RMSNorm, rotary positions, grouped-query attention, gated FFN.

Also reads pruned checkpoints of the family, whose FFN widths differ by layer: widths are taken from
the tensors, never from the config.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from strucprune_core.models.adapter import CoupledTensor, LayerTrace, LayerWeights
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.rope import cosines_and_sines, inverse_frequencies, rotate

_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FFN = ("gate_proj", "up_proj", "down_proj")


class LlamaAdapter:
    """Tensor names, channel coupling and the forward pass of llama."""

    embedding = "model.embed_tokens.weight"
    final_norm = "model.norm.weight"
    down_projection = "mlp.down_proj.weight"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.head = self.embedding if config.tie_word_embeddings else "lm_head.weight"
        rows = [CoupledTensor(f"mlp.{name}.weight", 0) for name in ("gate_proj", "up_proj")]
        if config.mlp_bias:
            rows += [CoupledTensor(f"mlp.{name}.bias", 0) for name in ("gate_proj", "up_proj")]
        self.ffn_channel = (*rows, CoupledTensor(self.down_projection, 1))
        self._activation = _ACTIVATIONS[config.hidden_act]

    def tensor_name(self, layer: int, role: str) -> str:
        """Checkpoint name of a layer's tensor."""
        return f"model.layers.{layer}.{role}"

    def roles(self) -> tuple[str, ...]:
        """Roles of one decoder layer's tensors, in the order of transformers' own files."""
        attention = [f"self_attn.{name}.weight" for name in _ATTENTION]
        ffn = [f"mlp.{name}.weight" for name in _FFN]
        if self.config.attention_bias:
            attention += [f"self_attn.{name}.bias" for name in _ATTENTION]
        if self.config.mlp_bias:
            ffn += [f"mlp.{name}.bias" for name in _FFN]
        return (*attention, *ffn, *_NORMS)

    def forward_layer(self, hidden: Tensor, weights: LayerWeights) -> LayerTrace:
        """Run one decoder layer on (batch, length, d), causally, positions from 0."""
        attention_norm, ffn_norm = (weights[name] for name in _NORMS)
        hidden = hidden + self._attend(self.normalise(hidden, attention_norm), weights)
        x = self.normalise(hidden, ffn_norm)
        activations = self._activation(_project(x, weights, "mlp.gate_proj"))
        activations = activations * _project(x, weights, "mlp.up_proj")
        return LayerTrace(hidden + _project(activations, weights, "mlp.down_proj"), activations)

    def normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm: x / rms(x) * weight."""
        variance = hidden.float().square().mean(-1, keepdim=True)
        scale = torch.rsqrt(variance + self.config.rms_norm_eps)
        return weight * (hidden * scale.to(hidden.dtype))

    def _attend(self, x: Tensor, weights: LayerWeights) -> Tensor:
        batch, length, _ = x.shape
        config = self.config
        # (batch, heads, length, head_dim)
        split = (batch, length, -1, config.head_dim)
        query = _project(x, weights, "self_attn.q_proj").view(split).transpose(1, 2)
        key = _project(x, weights, "self_attn.k_proj").view(split).transpose(1, 2)
        value = _project(x, weights, "self_attn.v_proj").view(split).transpose(1, 2)
        cosines, sines = self._positions(length, x.device)
        attended = functional.scaled_dot_product_attention(
            rotate(query, cosines, sines),
            rotate(key, cosines, sines),
            value,
            is_causal=True,
            enable_gqa=config.heads != config.kv_heads,
        )
        merged = attended.transpose(1, 2).reshape(batch, length, -1)
        return _project(merged, weights, "self_attn.o_proj")

    def _positions(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return _rotations(self.config, length, device)


@lru_cache(maxsize=4)
def _rotations(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    speeds = inverse_frequencies(config.rope, config.head_dim).to(device)
    return cosines_and_sines(speeds, length)


def _project(x: Tensor, weights: LayerWeights, role: str) -> Tensor:
    return functional.linear(x, weights[f"{role}.weight"], weights.get(f"{role}.bias"))


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": functional.relu,
}
