"""The config and modelling code that make a pruned checkpoint loadable, one function per layout.

`uniform`: every layer has the same width; plain `LlamaForCausalLM` loads it everywhere.
`per_layer`: the config carries a width per layer, and a modelling file travels with the weights:
`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`, or without remote code
`strucprune_core.load_pretrained(...)`.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from strucprune_core.models.config import PRUNED_LLAMA

MODELLING_MODULE = "modeling_strucprune_llama"
MODELLING_FILE = f"{MODELLING_MODULE}.py"


def side_files(layout: str, dense_config: dict[str, Any], widths: list[int]) -> dict[str, bytes]:
    """Small files of the checkpoint by name: config.json, and the modelling file if one is needed.

    Args:
        layout: "per_layer" or "uniform".
        dense_config: The dense model's config.json.
        widths: Channels kept in each layer.
    """
    config = {key: value for key, value in dense_config.items() if key != "auto_map"}
    if layout == "uniform":
        if len(set(widths)) != 1:
            raise ValueError("layout 'uniform' needs one width for all layers")
        config.pop("strucprune", None)
        config |= {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "intermediate_size": widths[0],
        }
        return {"config.json": _json(config)}
    config |= {
        "model_type": PRUNED_LLAMA,
        "architectures": ["StrucPruneLlamaForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELLING_MODULE}.StrucPruneLlamaConfig",
            "AutoModelForCausalLM": f"{MODELLING_MODULE}.StrucPruneLlamaForCausalLM",
        },
        "intermediate_size": max(widths),
        "strucprune": {"format_version": 1, "intermediate_sizes": widths},
    }
    return {"config.json": _json(config), MODELLING_FILE: modelling_code()}


def modelling_code() -> bytes:
    """The modelling file as it is shipped with a `per_layer` checkpoint."""
    return resources.files("strucprune_core.export").joinpath(MODELLING_FILE).read_bytes()


def _json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
