"""Tiny checkpoints of mixture-of-experts models, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.coverage.experts import with_changes
from tests.coverage.tiny import tiny_config, tiny_model
from tests.support.text import make_text
from tests.support.tiny_llama import save_tokenizer

# Of a layer. What each class calls that, and what its tiny model needs beside.
EXPERTS = 8
_CHANGES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS},
    "mixtral": {"num_local_experts": EXPERTS},
    "granitemoe": {"num_local_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS},
    "deepseek_v3": {
        "n_routed_experts": EXPERTS,
        "n_group": 2,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
    "jetmoe": {},
}


def save_tiny_experts(model_type: str, directory: Path, **changes: Any) -> Path:
    """Write a checkpoint with random weights, and a tokenizer.

    Args:
        model_type: One of those that this file lists.
        directory: Created if missing.
        changes: Keys of the config.
    """
    plain = tiny_config(model_type, num_hidden_layers=3)
    config = with_changes(plain, {"vocab_size": 512, **_CHANGES[model_type], **changes})
    with torch.random.fork_rng(devices=[]):
        model = tiny_model(config)
    model.save_pretrained(directory)
    save_tokenizer(directory, text=make_text(), vocab=512)
    return directory
