"""One small file per model family: its config.json and its tensor names. No torch."""

from __future__ import annotations

from collections.abc import Callable

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import (
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mixtral,
    opt,
    phi3,
    qwen,
)
from strucprune_core.models.fields import FIELD, RawConfig, refuse_variants
from strucprune_core.models.pruned_shapes import PRUNED_PREFIX, apply_pruned_shapes

Parser = Callable[[RawConfig], ModelConfig]

FAMILIES: dict[str, Parser] = {
    "llama": llama.parse_llama,
    "mistral": llama.parse_mistral,
    "qwen2": qwen.parse_qwen2,
    "qwen3": qwen.parse_qwen3,
    "gemma2": gemma.parse_gemma2,
    "gemma3_text": gemma.parse_gemma3,
    "phi3": phi3.parse,
    "opt": opt.parse,
    "gpt2": gpt2.parse,
    "gpt_neox": gpt_neox.parse,
    "mixtral": mixtral.parse_mixtral,
    "qwen3_moe": mixtral.parse_qwen3_moe,
}
"""Parser of each model type."""


def parse_config(config: RawConfig) -> ModelConfig:
    """Check a parsed config.json.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, is not implemented.
        InvalidCheckpoint: a key is missing or has an invalid value.
    """
    model_type = config.get("model_type")
    family = model_type.removeprefix(PRUNED_PREFIX) if isinstance(model_type, str) else None
    if family not in FAMILIES:
        raise UnsupportedArchitecture(
            f"architecture {shown(model_type)} is not supported",
            field=FIELD,
            remedy=f"Supported model types: {', '.join(FAMILIES)}.",
        )
    refuse_variants(config)
    parsed = FAMILIES[family](config)
    return apply_pruned_shapes(config, parsed) if model_type != family else parsed
