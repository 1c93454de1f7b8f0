"""The plugin that vLLM finds in this wheel: makes it load `per_layer` checkpoints.

vLLM calls `register` in each of its processes before it reads a config (entry point group
`vllm.general_plugins`). This module imports neither vLLM nor torch before that.
"""

from __future__ import annotations

_CLASSES = "strucprune_core.serving.vllm_models"
# vLLM has no class of its own for it.
_NOT_SERVED = ("gpt_neox",)


def served_classes() -> dict[str, str]:
    """The class in `vllm_models` of each family: the architecture that config.json names."""
    from strucprune_core.export.layouts import CLASS_STEMS, class_stem

    return {
        family: f"{class_stem(family)}ForCausalLM"
        for family in CLASS_STEMS
        if family not in _NOT_SERVED
    }


def register() -> None:
    """Tell vLLM the classes of pruned models, and transformers their configs; may be repeated."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from strucprune_core.export.modeling_strucprune import CONFIGS
    from strucprune_core.models.pruned_shapes import PRUNED_PREFIX

    for family, name in served_classes().items():
        model_type = f"{PRUNED_PREFIX}{family}"
        AutoConfig.register(model_type, CONFIGS[model_type], exist_ok=True)
        ModelRegistry.register_model(name, f"{_CLASSES}:{name}")
