"""Tiny random models of families beside llama: what a runtime must load, without a download."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

# Heads of 32 channels: the narrowest that vLLM's attention on a CPU has.
_SHAPE: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    # Wide enough that few greedy tokens are near ties.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "opt": {"ffn_dim": 192, "word_embed_proj_dim": 128, "init_std": 0.2},
    "gpt2": {"n_embd": 128, "n_layer": 6, "n_head": 4, "n_positions": 2048},
    "gpt_neox": {"num_key_value_heads": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


# The matrices with which a block adds to the residual stream, of all families here; and the norms
# behind them, of gemma.
_ATTENTION_OUT = r"(o_proj|out_proj|attn\.c_proj|attention\.dense|post_attention_layernorm)\b"
_FFN_OUT = r"(down_proj|fc2|mlp\.c_proj|dense_4h_to_h|post_feedforward_layernorm)\b"
_FAINT = 0.05


def ensure_tiny(
    family: str,
    tokenizer_of: Path,
    folder: Path,
    *,
    faint_blocks: bool = False,
    shape: Mapping[str, Any] | None = None,
) -> Path:
    """The directory of a tiny model with random weights, and another model's tokenizer.

    Args:
        family: Its model type.
        tokenizer_of: A model's directory, with tokenizer.json.
        folder: Where it is made, once.
        faint_blocks: Let the attention of layer 3 and the FFN of layer 1 add little, so that they
            are the cheapest blocks to remove.
        shape: What differs from other models of the family, by names of config.json.
    """
    shape = shape or {}
    details = [*(["faint"] if faint_blocks else []), *(f"{key}_{shape[key]}" for key in shape)]
    directory = folder / "_".join(["dense", family, *details])
    if (directory / "tokenizer.json").exists():
        return directory
    names = [each.name for each in tokenizer_of.glob("tokenizer*.json")]
    config_class = CONFIG_MAPPING[family]
    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer_of))
    settings = {**_SHAPE, **_OWN.get(family, {}), "vocab_size": vocabulary, **shape}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_class(**settings))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # transformers begins with ones and zeros
                parameter.data += 0.3 * torch.randn_like(parameter)
        if faint_blocks:
            _make_faint(model, family)
    model.save_pretrained(directory)
    for name in names:
        shutil.copy(tokenizer_of / name, directory)
    return directory


def _make_faint(model: nn.Module, family: str) -> None:
    faint = re.compile(rf"\.3\..*{_ATTENTION_OUT}|\.1\..*{_FFN_OUT}")
    for name, parameter in model.named_parameters():
        if not faint.search(name):
            continue
        if "layernorm" not in name:
            parameter.data *= _FAINT
        elif family.startswith("gemma"):  # Elsewhere this norm is that before the FFN.
            parameter.data = _FAINT * (1 + parameter.data) - 1
