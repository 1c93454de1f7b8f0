"""Importing this module lets transformers' Auto classes load pruned models without remote code.

    import strucprune_core.register
    model = AutoModelForCausalLM.from_pretrained("pruned")

Then this library's classes stand for every model type `strucprune_...`: they come before the code
that travels with a checkpoint, which is not asked for. `import strucprune_core` alone registers
nothing and loads no torch.

Classes of generic models are made when a config.json first names them, since each needs
transformers' own module of its architecture.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from strucprune_core.export import modeling_strucprune
from strucprune_core.models.generic.architectures import generic_model_types
from strucprune_core.models.generic.expert_table import expert_model_types
from strucprune_core.models.pruned_shapes import EXPERTS_PREFIX, PRUNED_PREFIX

_PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.


def _register() -> None:
    for model_type, config_class in _PRUNED.CONFIGS.items():
        AutoConfig.register(model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, _PRUNED.MODELS[model_type], exist_ok=True)
    types = [PRUNED_PREFIX + name for name in generic_model_types()]
    types += [EXPERTS_PREFIX + name for name in expert_model_types()]
    for model_type in types:
        AutoConfig.register(model_type, _placeholder(model_type), exist_ok=True)
    if find_spec("peft") is not None:
        import_module("peft.utils.constants")


def _placeholder(model_type: str) -> type[PretrainedConfig]:
    """A config class that hands over to the real one when it is asked to read a config.json."""

    def from_dict(cls: Any, /, config_dict: dict[str, Any], **options: Any) -> Any:
        config_class, model_class = _PRUNED.classes_of(model_type.removeprefix(PRUNED_PREFIX))
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        if model_class._auto_class == AutoModelForImageTextToText.__name__:
            AutoModelForImageTextToText.register(config_class, model_class, exist_ok=True)
        return config_class.from_dict(config_dict, **options)

    body = {"model_type": model_type, "from_dict": classmethod(from_dict)}
    return type("StrucPruneAnyConfig", (PretrainedConfig,), body)


_register()
