"""The config and modelling code that make a pruned checkpoint loadable, one function per layout.

`uniform`: every layer has the same shape; transformers' own classes load it everywhere (see
`uniform_config`).
`per_layer`: the config holds the shape of each layer, and a modelling file lies beside the weights.
It loads with `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`, or without remote
code with `strucprune_core.load_pretrained(...)`.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from strucprune_core.export.earlier_keys import with_earlier_keys
from strucprune_core.export.uniform_config import uniform_config
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import routing_of, with_count
from strucprune_core.models.pruned_shapes import (
    EXPERTS_PREFIX,
    PRUNED_PREFIX,
    expert_section,
    pruned_section,
)
from strucprune_core.models.read_config import ties_head

MODELLING_MODULE = "modeling_strucprune"
MODELLING_FILE = f"{MODELLING_MODULE}.py"
CLASS_STEMS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "phi3": "Phi3",
    "opt": "OPT",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3Moe",
}
"""Family to the stem of its class names in the modelling file."""


def side_files(layout: str, dense_config: dict[str, Any], pruned: ModelConfig) -> dict[str, bytes]:
    """Small files of the checkpoint by name: config.json, and the modelling file if one is needed.

    Args:
        layout: "per_layer" or "uniform".
        dense_config: The dense model's config.json.
        pruned: The pruned model's shape.
    """
    config = {key: value for key, value in dense_config.items() if key != "auto_map"}
    if pruned.generic is not None or ties_head(dense_config) != pruned.tie_word_embeddings:
        config["tie_word_embeddings"] = pruned.tie_word_embeddings  # See `models.own_head`.
    if layout == "uniform":
        return {"config.json": _json(uniform_config(config, pruned))}
    stem = class_stem(pruned.family)
    config |= _remote_classes(stem, dense_config)
    config |= {
        "model_type": f"{PRUNED_PREFIX}{pruned.family}",
        "strucprune": pruned_section(pruned),
    }
    return {"config.json": _json(config), MODELLING_FILE: modelling_code()}


def vanilla_side_files(dense_config: dict[str, Any], pruned: ModelConfig) -> dict[str, bytes]:
    """The same of a model of which whole layers went: transformers' own class loads it.

    Args:
        dense_config: The dense model's config.json, without these layers (see `layer_keys`).
        pruned: The pruned model's shape.
    """
    config = {**dense_config, "tie_word_embeddings": pruned.tie_word_embeddings}
    if pruned.generic is None:
        config = with_earlier_keys(config, pruned.family)
    return {"config.json": _json(config)}


def expert_side_files(
    layout: str, dense_config: dict[str, Any], pruned: ModelConfig
) -> dict[str, bytes]:
    """The same of a model without some experts.

    Args:
        layout: "uniform", which transformers' own class loads, or "per_layer".
        dense_config: The dense model's config.json.
        pruned: The pruned model's shape.
    """
    routing = routing_of(pruned)
    config = {key: value for key, value in dense_config.items() if key != "auto_map"}
    config["tie_word_embeddings"] = pruned.tie_word_embeddings  # See `models.own_head`.
    if layout == "uniform":
        return {"config.json": _json(with_count(config, routing, routing.experts))}
    stem = f"StrucPruneAny_experts_{pruned.family.replace('-', '__')}_"
    config |= _remote_classes(stem, dense_config)
    config |= {
        "model_type": f"{EXPERTS_PREFIX}{pruned.family}",
        "strucprune": expert_section(pruned),
    }
    return {"config.json": _json(config), MODELLING_FILE: modelling_code()}


def _remote_classes(stem: str, dense_config: dict[str, Any]) -> dict[str, Any]:
    """The keys of config.json that name classes of the modelling file."""
    model = f"{MODELLING_MODULE}.{stem}ForCausalLM"
    auto_map = {"AutoConfig": f"{MODELLING_MODULE}.{stem}Config", "AutoModelForCausalLM": model}
    if "text_config" in dense_config:
        auto_map["AutoModelForImageTextToText"] = model
    return {"architectures": [f"{stem}ForCausalLM"], "auto_map": auto_map}


def is_renamed(contents: dict[str, bytes], family: str) -> bool:
    """Whether config.json, one of these side files, names another model type than the dense one.

    Args:
        contents: The side files.
        family: Model type of the dense model.
    """
    return bool(json.loads(contents["config.json"])["model_type"] != family)


def class_stem(family: str) -> str:
    """What the names of a family's classes in the modelling file begin with."""
    if family in CLASS_STEMS:
        return f"StrucPrune{CLASS_STEMS[family]}"
    return f"StrucPruneAny_{family.replace('-', '__')}_"


def modelling_code() -> bytes:
    """The modelling file as it is shipped with a `per_layer` checkpoint."""
    return resources.files("strucprune_core.export").joinpath(MODELLING_FILE).read_bytes()


def _json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
