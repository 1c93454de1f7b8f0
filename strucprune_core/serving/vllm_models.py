"""vLLM's classes of the families that are pruned, with layers of different shapes.

Each is vLLM's own model; see `vllm_layers` for how its layers become narrower. vLLM imports this
module by name when it meets one of these architectures (see `vllm_plugin`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models import (
    gemma2,
    gemma3,
    gpt2,
    llama,
    mixtral,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from vllm.model_executor.models import mistral as mistral_models

from strucprune_core.serving.vllm_layers import Family, filled_up, pruned_layers

_LLAMA = Family(llama)


class Pruned:
    """Mixed into vLLM's classes: the same model, with layers as narrow as config.json lists."""

    family: ClassVar[Family]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        self.prepare(vllm_config)
        with pruned_layers(vllm_config, self.family):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def prepare(self, vllm_config: Any) -> None:
        """What a family needs before it is built."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights with vLLM's own loader; the names that were loaded."""
        section = self.config.strucprune  # type: ignore[attr-defined]
        loaded: set[str] = super().load_weights(filled_up(weights, section))  # type: ignore[misc]
        return loaded


class _NoFloat16(Pruned):
    """Families whose activations overflow float16; vLLM knows them by their own model types."""

    def prepare(self, vllm_config: Any) -> None:
        """Refuse float16.

        Raises:
            ValueError: it was asked for.
        """
        if vllm_config.model_config.dtype == torch.float16:
            raise ValueError("gemma overflows float16: use --dtype bfloat16 or float32")


class StrucPruneLlamaForCausalLM(Pruned, llama.LlamaForCausalLM):
    """llama."""

    family = _LLAMA


class StrucPruneMistralForCausalLM(Pruned, mistral_models.MistralForCausalLM):
    """mistral."""

    family = _LLAMA


class StrucPrunePhi3ForCausalLM(Pruned, phi3.Phi3ForCausalLM):
    """phi3."""

    family = _LLAMA


class StrucPruneQwen2ForCausalLM(Pruned, llama.LlamaForCausalLM):
    """qwen2, as a llama with biases of queries, keys and values.

    vLLM's own class for qwen2 takes the width of a head from the number of heads.
    """

    family = _LLAMA

    def prepare(self, vllm_config: Any) -> None:
        """Switch these biases on."""
        vllm_config.model_config.hf_config.qkv_bias = True


class StrucPruneQwen3ForCausalLM(Pruned, qwen3.Qwen3ForCausalLM):
    """qwen3."""

    family = Family(qwen2)


class StrucPruneGemma2ForCausalLM(_NoFloat16, gemma2.Gemma2ForCausalLM):
    """gemma2."""

    family = Family(gemma2)


class StrucPruneGemma3ForCausalLM(_NoFloat16, gemma3.Gemma3ForCausalLM):
    """gemma3_text."""

    family = Family(gemma3)


class StrucPruneOPTForCausalLM(Pruned, opt.OPTForCausalLM):
    """opt."""

    family = Family(opt, ("ffn_dim",), ("qkv_proj", "out_proj"))


class StrucPruneGPT2ForCausalLM(Pruned, gpt2.GPT2LMHeadModel):
    """gpt2."""

    family = Family(gpt2, ("n_inner",), ("c_attn", "c_proj"))


class StrucPruneMixtralForCausalLM(Pruned, mixtral.MixtralForCausalLM):
    """mixtral."""

    family = Family(mixtral)


class StrucPruneQwen3MoeForCausalLM(Pruned, qwen3_moe.Qwen3MoeForCausalLM):
    """qwen3_moe."""

    family = Family(qwen3_moe, ("moe_intermediate_size", "intermediate_size"))
