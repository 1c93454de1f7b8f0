"""A llama whose decoder layers have FFNs of different widths. Written by StrucPrune, Apache-2.0.

Everything but the widths is transformers' own Llama: `config.strucprune["intermediate_sizes"]`
holds the width of each layer. This file travels with every `per_layer` checkpoint.
"""

import copy

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class StrucPruneLlamaConfig(LlamaConfig):
    """Llama's config with one FFN width per layer."""

    model_type = "strucprune_llama"
    strucprune: dict | None = None


class StrucPruneLlamaForCausalLM(LlamaForCausalLM):
    """Llama with one FFN width per layer."""

    config_class = StrucPruneLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        widths = config.strucprune["intermediate_sizes"]
        if len(widths) != len(self.model.layers):
            raise ValueError(
                f"config.strucprune has {len(widths)} widths for {len(self.model.layers)} layers"
            )
        for layer, width in zip(self.model.layers, widths, strict=True):
            narrowed = copy.copy(config)
            narrowed.intermediate_size = width
            layer.mlp = LlamaMLP(narrowed)
        self.post_init()
