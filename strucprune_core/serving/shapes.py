"""The shapes of a pruned model's layers, as an engine that splits layers over devices needs them.

Of the `strucprune` section of config.json (see `models.pruned_shapes`). Imports no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Kernels of mixtures of experts want the width of an expert in multiples of this.
EXPERT_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a decoder layer has.

    Attributes:
        query_heads, kv_heads: 0 in a layer without attention.
        ffn: The width of the FFN, or of each expert; empty in a layer without FFN.
    """

    query_heads: int
    kv_heads: int
    ffn: tuple[int, ...]


def layer_shapes(section: Mapping[str, Any]) -> list[LayerShape]:
    """The shape of each layer.

    Args:
        section: `strucprune` of config.json.

    Raises:
        ValueError: it does not list layers: the model is of a family that is not ours.
    """
    layers = section.get("layers")
    if not isinstance(layers, list):
        raise ValueError("the section strucprune of config.json lists no layers")
    return [
        LayerShape(each["query_heads"], each["kv_heads"], tuple(each["ffn"])) for each in layers
    ]


def expert_width(shape: LayerShape, devices: int) -> int:
    """The width that all experts of a layer are filled up to with zeros.

    Args:
        shape: Of the layer.
        devices: Tensor parallel size; each device gets a multiple of `EXPERT_MULTIPLE`.
    """
    step = EXPERT_MULTIPLE * devices
    return -(-max(shape.ffn) // step) * step


def check_split(shapes: list[LayerShape], devices: int) -> None:
    """Refuse a tensor parallel size that some layer cannot be split by.

    Key-value heads may be fewer than devices if they divide their number: they are repeated.

    Raises:
        ValueError: names the first layer, its number, and sizes that would do.
    """
    problems = [(layer, _problem(shape, devices)) for layer, shape in enumerate(shapes)]
    layer, words = next(((layer, words) for layer, words in problems if words), (0, None))
    if words is None:
        return
    good = [
        size for size in range(1, devices) if not any(_problem(shape, size) for shape in shapes)
    ]
    raise ValueError(
        f"layer {layer} of this pruned model has {words}, which tensor parallel size {devices} "
        f"does not divide. Sizes that divide all layers: {', '.join(map(str, good))}. Pipeline "
        f"parallelism splits between layers and has no such limit; or prune again with "
        f"multiple_of a multiple of {devices}."
    )


def _problem(shape: LayerShape, devices: int) -> str | None:
    if shape.query_heads % devices:
        return f"{shape.query_heads} query heads"
    fewer = 0 < shape.kv_heads < devices
    if devices % shape.kv_heads if fewer else shape.kv_heads % devices:
        return f"{shape.kv_heads} key-value heads"
    # Experts of several widths are filled up, see `expert_width`.
    if len(shape.ffn) == 1 and shape.ffn[0] % devices:
        return f"{shape.ffn[0]} FFN channels"
    return None
