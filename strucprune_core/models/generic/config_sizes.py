"""Sizes that config.json says, against those that the files have. No torch.

transformers builds what config.json says, whatever the files hold: an absurd number would take
minutes or all memory, and another model's number is only noticed once its modules are there. So
what can be told without them is refused first: numbers that nothing in the files explains, and the
vocabulary, the embedding's width and FFN widths that differ. Heads, positions that are computed and
what else only the classes know is compared by the first step of a job (`evaluation.generic_check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models import fields
from strucprune_core.models.config import FeedForward
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.generic.size_keys import embedding_keys, width_key

Shapes = Mapping[str, tuple[int, ...]]

# Sizes below it cost nothing, whatever the files hold.
_HARMLESS = 2**20
# Longest context of any known model: 10 million tokens. Some classes make a table of all positions.
_MAX_CONTEXT = 2**24
# Sizes of no tensor, such as a window without end, are left alone.
_SIZES = re.compile(
    r"^(?!.*(?:window|batch|cache|chunk))(?:.*_)?"
    r"(?:size|dims?|width|rank|heads?|inner|embd|embed|channels|features|vocab|ff|dff|model)"
    r"(?:_(?:base|per_layer|per_layer_input))?$"
)
_EXPERTS = re.compile(r"(?:^|_)experts$")
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings?)\.weight$")


def check_sizes(raw: RawConfig, shapes: Shapes) -> None:
    """Refuse numbers of config.json that are far beyond every dimension in the files.

    Raises:
        InvalidCheckpoint: there is one.
    """
    limit = max(_HARMLESS, 2 * max((max(shape, default=1) for shape in shapes.values()), default=1))
    for key, value in _numbers(raw):
        if _EXPERTS.search(key) and value > fields.MAX_EXPERTS:
            raise _refused(f"config.json says {key} is {value:,}, more than {fields.MAX_EXPERTS:,}")
        if _SIZES.match(key) and value > limit:
            raise _refused(
                f"config.json says {key} is {value:,}, far more than any dimension in the files"
            )


def check_context(key: str, context: int, embedding: str, shapes: Shapes) -> None:
    """Compare the longest sequence with the table of positions, if the files hold one.

    Args:
        key: Key of config.json that says it.
        context: What it says.
        embedding: Tensor of the token embedding: the decoder's table is a module beside it.
        shapes: Of all tensors.

    Raises:
        InvalidCheckpoint: the table has fewer rows, or no model has so many positions.
    """
    beside = embedding.removesuffix(".weight").rpartition(".")[0]
    for name, shape in shapes.items():
        of_decoder = name.rpartition(".")[0].rpartition(".")[0] == beside and len(shape) == 2
        if of_decoder and _POSITIONS.search(name) and shape[0] < context:
            raise _refused(
                f"config.json says {key} is {context:,}, but '{name}' holds {shape[0]:,} positions"
            )
    if context > _MAX_CONTEXT:
        raise _refused(
            f"config.json says {key} is {context:,}, and at most {_MAX_CONTEXT:,} is supported"
        )


def check_embedding(family: str, decoder: RawConfig, name: str, shape: tuple[int, ...]) -> None:
    """Compare the token embedding's shape with config.json.

    Raises:
        InvalidCheckpoint: they differ.
    """
    for key, size, what in zip(embedding_keys(family), shape, ("rows", "columns"), strict=True):
        said = None if key is None else decoder.get(key)
        if type(said) is int and said != size:
            raise _refused(f"config.json expects {said:,} {what} ({key}) of '{name}', not {size:,}")


def check_width(family: str, raw: RawConfig, decoder: RawConfig, ffn: FeedForward) -> None:
    """Compare an FFN's width with config.json, unless the model was pruned before.

    Raises:
        InvalidCheckpoint: they differ.
    """
    key = width_key(family, ffn.output)
    said = None if key is None or "strucprune" in raw else decoder.get(key)
    if type(said) is int and said != ffn.channels:
        raise _refused(
            f"config.json expects {said:,} channels ({key}) of '{ffn.output}' in every layer, but "
            f"the files hold {ffn.channels:,}"
        )


def _refused(message: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        message,
        field=fields.FIELD,
        remedy="Give the config.json that was saved with the weights.",
    )


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer of config.json by its key, whatever part it is in."""
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, list):
            yield from ((key, each) for each in value if type(each) is int)
        elif type(value) is int:
            yield key, value
