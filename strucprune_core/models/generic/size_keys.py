"""Keys of config.json that hold sizes: of FFNs, the vocabulary and the token embedding. No torch.

With a key for the width of its FFNs, a model whose FFNs all lose equally many channels loads in
transformers' own class. The table is made by `python -m tests.coverage.sizes`, which changes the
numbers of tiny configs: an FFN's key is in it if nothing but the tensors of whole FFNs took another
shape.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.models.config import ModelConfig

TABLE = "sizes.json"


@cache
def table() -> dict[str, Any]:
    """The table as it is stored: `transformers` (the version) and `model_types`."""
    text = resources.files("strucprune_core.models.generic").joinpath(TABLE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def width_key(model_type: str, output: str) -> str | None:
    """The key for the width of an FFN; None if the class has none for it alone.

    Args:
        model_type: Of the dense model.
        output: Name within the layer of the FFN's matrix after the activation.
    """
    key: str | None = _entry(model_type).get("ffn", {}).get(output)
    return key


def embedding_keys(model_type: str) -> tuple[str | None, str | None]:
    """The keys for the rows and the columns of the token embedding; None if they are not known."""
    entry = _entry(model_type)
    return entry.get("vocabulary"), entry.get("embedding")


def _entry(model_type: str) -> dict[str, Any]:
    found: dict[str, Any] = table()["model_types"].get(model_type, {})
    return found


def widths_by_key(config: ModelConfig) -> dict[str, int]:
    """The width of FFNs by the key that holds it.

    Raises:
        InvalidSpec: an FFN has no key, or layers that share one differ.
    """
    widths: dict[str, int] = {}
    for layer, block in enumerate(config.blocks):
        for each in block.generic.feed_forwards if block.generic is not None else ():
            key = width_key(config.family, each.output)
            if key is None:
                raise InvalidSpec(
                    f"the class of architecture '{config.family}' has no key for the width of "
                    f"'{config.names.layer.format(layer)}{each.output}' alone, so no uniform "
                    "layout can hold the result",
                    field="pruning.layout",
                    remedy="Use layout 'per_layer'.",
                    mends=[Mend("pruning.layout", "per_layer")],
                )
            if widths.setdefault(key, each.channels) != each.channels:
                raise InvalidSpec(
                    f"the model's layers already differ in width ({key}), so no uniform layout can "
                    "hold them",
                    field="pruning.layout",
                    remedy="Use layout 'per_layer'.",
                    mends=[Mend("pruning.layout", "per_layer")],
                )
    return widths


def with_widths(raw: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A config.json with the widths of a model, for transformers' own class."""
    widths = widths_by_key(config)
    if isinstance(raw.get("text_config"), dict):
        return raw | {"text_config": raw["text_config"] | widths}
    return raw | widths
