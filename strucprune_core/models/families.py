"""Which adapter serves which `model_type`: the one place to add a family to."""

from __future__ import annotations

from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models.adapter import Adapter
from strucprune_core.models.config import PRUNED_LLAMA, ModelConfig
from strucprune_core.models.llama import LlamaAdapter

_FAMILIES = {"llama": LlamaAdapter, PRUNED_LLAMA: LlamaAdapter}


def adapter_for(config: ModelConfig) -> Adapter:
    """The adapter of a model's family.

    Raises:
        UnsupportedArchitecture: no adapter knows the model type.
    """
    if config.model_type not in _FAMILIES:
        raise UnsupportedArchitecture(
            f"architecture '{config.model_type}' is not supported", field="model.uri"
        )
    return _FAMILIES[config.model_type](config)
