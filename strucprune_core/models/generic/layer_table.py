"""Which architectures that run in transformers' modules cannot lose whole layers. No torch.

The table is made by `python -m tests.coverage.layers`, which removes each layer of a tiny model and
loads the rest in transformers' own class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from strucprune_core.models.generic.architectures import architecture

TABLE = "layers.json"


def why_layers_stay(model_type: str) -> str | None:
    """Why an architecture cannot lose layers; None if it can."""
    if architecture(model_type) is None:
        return "this was tried on models with channels that can be removed alone"
    return refusals().get(model_type)


@cache
def refusals() -> Mapping[str, str]:
    """The reasons that were found, by model type."""
    text = resources.files("strucprune_core.models.generic").joinpath(TABLE).read_text("utf-8")
    found: dict[str, str] = json.loads(text)["refused"]
    return found
