"""Shapes that are measured and planned for; no torch."""

from __future__ import annotations

from typing import Any

from benchmarks.memory_scaling import LLAMA, OPT, raw_config

SMOLLM2 = "smollm2-135m"


def raw_of(name: str, layers: int | None = None) -> dict[str, Any]:
    """The config.json of a shape, with fewer layers if a number is given."""
    if name == SMOLLM2:
        raw = {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
    else:
        raw = raw_config(name)
    return raw if layers is None else {**raw, "num_hidden_layers": layers}


NAMES = (SMOLLM2, *OPT, *LLAMA)
