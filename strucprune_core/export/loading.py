"""Loading a pruned checkpoint with transformers, running no code but the library's own."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from strucprune_core.export.modeling_strucprune import CONFIGS, MODELS


def load_pretrained(directory: str, **options: Any) -> Any:
    """Load a pruned checkpoint of any layout.

    Args:
        directory: A local checkpoint directory.
        options: Passed on to transformers' `from_pretrained`.

    Returns:
        The transformers model. A `per_layer` checkpoint's own modelling file is not run.
    """
    for model_type, config in CONFIGS.items():
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, MODELS[model_type], exist_ok=True)
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False, **options)
