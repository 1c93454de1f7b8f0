"""Loads a pruned checkpoint with transformers, without running the checkpoint's own code."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PretrainedConfig

from strucprune_core.export import modeling_strucprune
from strucprune_core.models.generic.modules import dense_model, safe_config
from strucprune_core.models.generic.unseen import towers_may_lack
from strucprune_core.models.pruned_shapes import PRUNED_PREFIX

_PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.


def model_class_of(raw: dict[str, Any]) -> Any:
    """The class of a pruned `per_layer` checkpoint by its config.json; None for any other."""
    model_type = str(raw.get("model_type"))
    if model_type in _PRUNED.MODELS or not model_type.startswith(PRUNED_PREFIX):
        return _PRUNED.MODELS.get(model_type)
    return _PRUNED.classes_of(model_type.removeprefix(PRUNED_PREFIX))[1]


def built_model(raw: dict[str, Any]) -> Any:
    """The model of a config.json, pruned or dense, before it has weights."""
    model_class = model_class_of(raw)
    if model_class is not None:
        with towers_may_lack():
            return model_class(model_class.config_class.from_dict(safe_config(raw)))
    return dense_model(raw)


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
    model_class: Any = model_class_of(raw)
    options.pop("trust_remote_code", None)
    if model_class is not None:
        return model_class.from_pretrained(directory, **options)
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False, **options)
