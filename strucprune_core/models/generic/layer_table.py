"""Which architectures that run in transformers' modules cannot lose whole layers. No torch.

The table is made by `python -m tests.coverage.layers`, which removes each layer of a tiny model and
loads the rest in transformers' own class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

TABLE = "layers.json"


@cache
def refusals() -> Mapping[str, str]:
    """The reason by model type; the others can lose layers."""
    text = resources.files("strucprune_core.models.generic").joinpath(TABLE).read_text("utf-8")
    found: dict[str, str] = json.loads(text)["refused"]
    return found
