"""Which keys of config.json hold the sizes of an architecture, found by changing them.

    python -m tests.coverage.sizes [--only NAME ...]

Writes `sizes.json`, which the product reads. A key is that of an FFN's width if the width is what
it says, and if nothing but the tensors of whole FFNs has another shape once it has another value.
Two more keys say the size of the vocabulary and of the token embedding.
"""

from __future__ import annotations

import argparse
import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from strucprune_core.models.generic import size_keys
from strucprune_core.models.generic.architectures import Architecture, ChannelPattern, architecture
from strucprune_core.models.generic.meta_parameters import skeleton
from strucprune_core.models.generic.modules import dense_model
from strucprune_core.models.generic.names import ParameterNames
from tests.coverage.table import as_stored, generic_names
from tests.coverage.tiny import VARIANTS, tiny_config

TABLE = Path(size_keys.__file__).with_name(size_keys.TABLE)
_STEP = 16
_MOST_LAYERS = 16  # More than a tiny model has.

Shapes = dict[str, tuple[int, ...]]


def find_size_keys(model_type: str) -> dict[str, Any]:
    """The keys of an architecture, as the table holds them.

    `ffn` has the key of each FFN's width that has one, by the FFN's matrix after the activation.

    Raises:
        ValueError: no tiny model of the architecture can be made.
    """
    found = architecture(model_type)
    if found is None:
        raise ValueError(f"the table has no channels of '{model_type}'")
    for changes in VARIANTS:
        raw = json.loads(tiny_config(model_type, **changes).to_json_string(use_diff=False))
        try:
            dense = _model(raw)
        except Exception:  # Whatever the classes make of sizes that do not fit together.
            continue
        names, before = ParameterNames(dense), _shapes(dense)
        ffns = {
            pattern.output: _parameters(pattern, found.layer, names, before)
            for pattern in found.channels
        }
        keys: dict[str, str] = {}
        for key, width in _candidates(raw, found, names, before):
            changed = _changed(raw, key, width + _STEP, before)
            of_key = [each for each in found.channels if ffns[each.output] <= changed.keys()]
            of_key = [each for each in of_key if ffns[each.output]]
            fits = all(_widths(e, found.layer, names, changed) == {width + _STEP} for e in of_key)
            own = {name for each in of_key for name in ffns[each.output]}
            if of_key and fits and changed.keys() == own:
                keys |= {each.output: key for each in of_key}
        sizes = ("vocabulary", "embedding")
        embedding = names.parameter_of(found.embedding)[0]
        return {"ffn": keys} | {
            size: _embedding_key(raw, embedding, axis, before) for axis, size in enumerate(sizes)
        }
    raise ValueError(f"no tiny model of '{model_type}' can be made")


def _embedding_key(raw: dict[str, Any], embedding: str, axis: int, before: Shapes) -> str | None:
    """The key that says a dimension of the token embedding."""
    size = before[embedding][axis]
    for key in sorted(key for key, value in _decoder(raw).items() if value == size):
        after = _changed(raw, key, 2 * size, before).get(embedding)
        if after is not None and after[axis] == 2 * size:
            return key
    return None


def _decoder(raw: dict[str, Any]) -> dict[str, Any]:
    return raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw


def _candidates(
    raw: dict[str, Any], found: Architecture, names: ParameterNames, shapes: Shapes
) -> list[tuple[str, int]]:
    """Keys that say the width of an FFN, or say nothing and may, each with that width."""
    decoder = _decoder(raw)
    widths = {w for each in found.channels for w in _widths(each, found.layer, names, shapes)}
    return [
        (key, width)
        for width in sorted(widths)
        for key in sorted(decoder)
        if type(decoder[key]) in (int, type(None)) and decoder[key] in (width, None)
    ]


def _model(raw: dict[str, Any]) -> Any:
    return skeleton(lambda: dense_model(raw), torch.device("cpu"))


def _shapes(model: Any) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _changed(raw: dict[str, Any], key: str, value: int, before: Shapes) -> Shapes:
    """The shapes that differ once a key has a value; none if no model can be made then."""
    other = deepcopy(raw)
    _decoder(other)[key] = value
    try:
        after = _shapes(_model(other))
    except Exception:  # The number has to fit others.
        return {}
    if after.keys() != before.keys():
        return {}
    return {name: shape for name, shape in after.items() if shape != before[name]}


def _parameters(
    pattern: ChannelPattern, layer: str, names: ParameterNames, shapes: Shapes
) -> set[str]:
    """The parameters of an FFN, in all layers that have it; biases of its sources among them."""
    found: set[str] = set()
    sources = [source.tensor for source in pattern.sources]
    biases = [f"{each.removesuffix('.weight')}.bias" for each in sources]
    for number in range(_MOST_LAYERS):
        prefix = layer.format(number)
        own = [names.parameter_of(prefix + each)[0] for each in (pattern.output, *sources)]
        if all(name in shapes for name in own):
            optional = (names.parameter_of(prefix + each)[0] for each in biases)
            found |= {*own, *(name for name in optional if name in shapes)}
    return found


def _widths(pattern: ChannelPattern, layer: str, names: ParameterNames, shapes: Shapes) -> set[int]:
    """Channels of an FFN in all layers that have it."""
    outputs = (
        names.parameter_of(layer.format(number) + pattern.output)[0]
        for number in range(_MOST_LAYERS)
    )
    return {shapes[name][pattern.axis] for name in outputs if name in shapes}


def main(arguments: list[str]) -> int:
    """Examine architectures, and write what was found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.sizes", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these, and keep the others")
    only = parser.parse_args(arguments).only
    entries = {} if only is None else dict(size_keys.table()["model_types"])
    for name in generic_names() if only is None else only:
        if architecture(name) is None:
            continue
        try:
            entries[name] = find_size_keys(name)
        except Exception as error:  # Whatever the class of an architecture raises.
            entries[name] = {"ffn": {}, "vocabulary": None, "embedding": None}
            print(f"{name:28} failed: {error}", flush=True)
        print(f"{name:28} {json.dumps(entries[name])}", flush=True)
    TABLE.write_text(as_stored(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
