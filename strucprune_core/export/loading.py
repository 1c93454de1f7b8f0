"""Loads a pruned checkpoint with transformers, without running the checkpoint's own code."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PretrainedConfig

from strucprune_core.export.modeling_strucprune import MODELS


def load_pretrained(directory: str, **options: Any) -> Any:
    """Load a pruned checkpoint of any layout.

    Nothing is registered with transformers' Auto classes, so other models that the process loads
    are not affected.

    Args:
        directory: A local checkpoint directory.
        options: Passed on to transformers' `from_pretrained`.

    Returns:
        The transformers model. A `per_layer` checkpoint's own modelling file is not run;
        `save_pretrained` writes this library's beside the weights.
    """
    raw, _ = PretrainedConfig.get_config_dict(directory)
    model_class: Any = MODELS.get(raw.get("model_type"))
    options.pop("trust_remote_code", None)
    if model_class is not None:
        return model_class.from_pretrained(directory, **options)
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False, **options)
