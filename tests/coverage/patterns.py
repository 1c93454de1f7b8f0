"""The entry of an architecture in the table, found on a tiny model of it."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from strucprune_core.models.config import ChannelSource
from strucprune_core.models.generic.architectures import Architecture, ChannelPattern
from strucprune_core.models.generic.modules import decoder_layers
from strucprune_core.models.generic.names import ParameterNames
from tests.coverage.detect import (
    FoundChannels,
    LayerCall,
    NotPrunable,
    find_channels,
    layer_calls,
    linear_modules,
)
from tests.coverage.other_names import other_names
from tests.coverage.tiny import is_encoder

# Bottlenecks of adapters, norms, hyper-connections and added low-rank maps are as narrow as they
# can be.
_NO_FFN = re.compile("adapter|norm|connection|laurel")

# How many hidden states layers with hyper-connections hand on for a token.
_STREAM_KEYS = ("hc_mult", "hc_count", "altup_num_inputs", "ngram")
_MORE_STREAMS = {"ngram": 1}
# How many numbers of a token a layer hands to the next one, beside hidden states.
_HANDED_KEYS = ("index_topk", "router_hidden_size")
# What is 0 where layers are given no inputs of their own.
_INPUTS_KEY = "hidden_size_per_layer_input"
_APART = "its files keep parts of a layer apart from the others"

Place = tuple[str, int, int]
"""A slice of a tensor in the files: its name, the axis, the index."""


@dataclass(frozen=True, slots=True)
class TinyCheckpoint:
    """A tiny model as its files would hold it.

    Attributes:
        model: The model.
        tensors: Its tensors by name; tied ones once.
        head: Name of the head's matrix, which `tensors` lacks if it is tied.
    """

    model: Any
    tensors: dict[str, Tensor]
    head: str


def as_stored(model: Any) -> TinyCheckpoint:
    """A model's tensors as `save_pretrained` names and stores them, tied ones once."""
    stored = revert_weight_conversion(model, dict(model.state_dict()))
    if model.get_output_embeddings() is None:
        raise NotPrunable("transformers' class has no head that turns hidden states into logits")
    names = ParameterNames(model)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = {name: names.parameter_of(name)[0] for name in stored}
    head = _name_of(model, model.get_output_embeddings())
    return TinyCheckpoint(
        model,
        {name: t.detach() for name, t in stored.items() if parameters[name] not in tied},
        next(name for name, parameter in parameters.items() if parameter == head),
    )


def _name_of(model: Any, module: Any) -> str:
    return f"{_path_of(model, module)}.weight"


def _path_of(model: Any, module: Any) -> str:
    for path, each in model.named_modules():
        if each is module:
            return str(path)
    raise ValueError("the module is not in the model")


@torch.no_grad()
def find_architecture(checkpoint: TinyCheckpoint, tokens: Tensor) -> Architecture:
    """What the files and modules of a tiny model's architecture look like.

    Args:
        checkpoint: The model.
        tokens: One sequence of token ids, (1, n), n above the widest linear module if that is
            possible.

    Raises:
        NotPrunable: it has no channels that can be removed, or is otherwise out of reach.
    """
    model = checkpoint.model
    path, layers = decoder_layers(model)
    names = ParameterNames(model)
    prefix = _layer_prefix(checkpoint, names, path)
    calls = layer_calls(model, layers, tokens)
    outline = _outline(checkpoint, names, prefix, layers, calls, tokens)
    patterns: dict[str, ChannelPattern] = {}
    found_in: dict[str, set[int]] = {}
    for number, call in calls.items():
        layer = layers[number]
        origins = _Origins(checkpoint, names, prefix.format(number))
        for found in find_channels(layer, call, _hidden_size(model, calls)):
            if _NO_FFN.search(found.output):
                continue
            pattern = _pattern(found, linear_modules(layer), f"{path}.{number}.", origins)
            if pattern is not None:
                patterns.setdefault(pattern.output, pattern)
                found_in.setdefault(pattern.output, set()).add(number)
    if not patterns:
        raise NotPrunable(no_channels(model))
    channels = tuple(patterns.values())
    others = other_names(outline, names, channels[0].output)
    outline = _with_spared(checkpoint, outline, found_in, len(layers))
    return replace(outline, channels=channels, other_names=others)


def _with_spared(
    checkpoint: TinyCheckpoint, outline: Architecture, found_in: dict[str, set[int]], layers: int
) -> Architecture:
    """The architecture with the key of config.json that says where no channels were found."""
    missed: set[int] = set()
    for output, numbers in found_in.items():
        have = {n for n in range(layers) if outline.layer.format(n) + output in checkpoint.tensors}
        missed |= have - numbers
    if not missed:
        return outline
    for key, value in checkpoint.model.config.get_text_config().to_dict().items():
        if not isinstance(value, list) or not all(type(each) in (int, float) for each in value):
            continue
        if len(value) == layers and {n for n, each in enumerate(value) if each} == missed:
            return replace(outline, spared_key=key)
        if set(value) & set(range(layers)) == missed:
            return replace(outline, spared_key=key, spared_numbers=True)
    return outline


@torch.no_grad()
def find_outline(checkpoint: TinyCheckpoint, tokens: Tensor) -> Architecture:
    """The same as `find_architecture`, without looking for channels.

    Args:
        checkpoint: The model.
        tokens: One sequence of token ids, (1, n).

    Raises:
        NotPrunable: it is out of reach.
    """
    path, layers = decoder_layers(checkpoint.model)
    names = ParameterNames(checkpoint.model)
    prefix = _layer_prefix(checkpoint, names, path)
    calls = layer_calls(checkpoint.model, layers, tokens)
    found = _outline(checkpoint, names, prefix, layers, calls, tokens)
    first = prefix.format(0)
    role = next(name for name in checkpoint.tensors if name.startswith(first)).removeprefix(first)
    return replace(found, other_names=other_names(found, names, role))


@dataclass(frozen=True, slots=True)
class _Streams:
    """The hidden states of a token between layers.

    Attributes:
        key, apart, axis, more: See `Architecture.streams_key` and what follows there.
    """

    key: str | None
    apart: bool
    axis: int
    more: int


def hidden_of(call: LayerCall) -> Tensor:
    """The hidden states that a layer is given."""
    hidden: Tensor = call.given[0] if call.given else call.options["hidden_states"]
    return hidden


def _hidden_size(model: Any, calls: dict[int, LayerCall]) -> int:
    """Width of the residual stream."""
    text = model.config.get_text_config()
    if any(hasattr(text, key) for key in _STREAM_KEYS):
        return int(text.hidden_size)
    return hidden_of(calls[0]).shape[-1]


def _streams(model: Any, tokens: Tensor, calls: dict[int, LayerCall]) -> _Streams:
    """What layers are given for a token.

    Raises:
        NotPrunable: more than its hidden states.
    """
    text = model.config.get_text_config()
    key = next((key for key in _STREAM_KEYS if hasattr(text, key)), None)
    more = _MORE_STREAMS.get(str(key), 0)
    count = more + (1 if key is None else getattr(text, key))
    (b, n), width = tokens.shape, _hidden_size(model, calls)
    shapes = {2: (b, n, count, width), 0: (count, b, n, width), 1: (b, count * n, width)}
    first = tuple(hidden_of(calls[0]).shape)
    axis = next((axis for axis, shape in shapes.items() if shape == first and count > 1), None)
    if {tuple(hidden_of(call).shape) for call in calls.values()} != {first}:
        raise NotPrunable("its layers are given hidden states of different shapes")
    if axis is None and first != (b, n, count * width):
        raise NotPrunable("its layers hand on several streams of hidden states at once")
    return _Streams(key, axis is not None, 2 if axis is None else axis, more)


def _all_return(layers: Any, calls: dict[int, LayerCall]) -> str | tuple[str, ...]:
    """What every layer returns."""
    returns = {
        _returned(layers[number](*call.given, **call.options)) for number, call in calls.items()
    }
    if len(returns) != 1:
        raise NotPrunable("its layers return different things")
    return returns.pop()


def _handed(
    config: Any, layers: Any, calls: dict[int, LayerCall]
) -> tuple[str, int, str, bool] | None:
    """See `Architecture.handed`: found by leaving out what a layer got from the one before."""
    text = config.get_text_config()
    key = next((key for key in _HANDED_KEYS if hasattr(text, key)), None)
    for number in list(calls)[1:] if key is not None else ():
        before = calls[number - 1]
        output = layers[number - 1](*before.given, **before.options)
        for place, value in enumerate(output) if isinstance(output, tuple) else ():
            name = _taken_as(layers[number], calls[number], value) if place else None
            if name is not None:
                return name, place, str(key), not value.is_floating_point()
    return None


def _taken_as(layer: Any, call: LayerCall, value: Any) -> str | None:
    """The argument by which a layer gets a tensor, if it reads it."""
    for name, given in _arguments(layer, call).items():
        both = isinstance(given, Tensor) and isinstance(value, Tensor)
        if both and torch.equal(given, value) and _reads(layer, call, name):
            return name
    return None


def _arguments(layer: Any, call: LayerCall) -> dict[str, Any]:
    """What a layer is given, by name."""
    bound = inspect.signature(type(layer).forward).bind_partial(layer, *call.given, **call.options)
    return dict(bound.arguments)


def _reads(layer: Any, call: LayerCall, name: str) -> bool:
    """Whether a layer computes something else, or nothing, without an argument."""
    taken = {key: value for key, value in _arguments(layer, call).items() if key != "self"}
    more = taken.pop("kwargs", {})
    plain = layer(*call.given, **call.options)[0]
    try:
        without = layer(**{**taken, **more, name: None})[0]
    except ValueError:
        return True
    return not torch.equal(plain, without)


def _outline(
    checkpoint: TinyCheckpoint,
    names: ParameterNames,
    prefix: str,
    layers: Any,
    calls: dict[int, LayerCall],
    tokens: Tensor,
) -> Architecture:
    """An architecture without channels."""
    model = checkpoint.model
    text = model.config.get_text_config()
    streams = _streams(model, tokens, calls)
    ids = any(call.options.get("input_ids") is not None for call in calls.values())
    inputs = bool(getattr(text, _INPUTS_KEY, 0))
    embedding = model.get_input_embeddings()
    return Architecture(
        layer=prefix,
        embedding=_stored_name(checkpoint, names, _name_of(model, embedding)),
        head=checkpoint.head,
        head_bias=_head_bias(checkpoint, names),
        tied=model.get_output_embeddings().weight is embedding.weight,
        layer_returns=_all_return(layers, calls),
        keeps_scores=text._attn_implementation == "eager",
        encoder=is_encoder(model.config),
        streams_key=streams.key,
        streams_apart=streams.apart,
        streams_axis=streams.axis,
        streams_more=streams.more,
        tokens_key="" if ids else _INPUTS_KEY if inputs else None,
        reads_embedding=inputs,
        shares_keys=bool(getattr(text, "num_kv_shared_layers", 0)),
        handed=_handed(model.config, layers, calls),
        context_key=_context_key(model.config),
        channels=(),
    )


def no_channels(model: Any) -> str:
    """Why no channels of a model can be removed, though its layers can be run."""
    _, layers = decoder_layers(model)
    if any("Expert" in type(module).__name__ for module in layers.modules()):
        return "its FFNs are routed experts, whose channels cannot be removed one by one yet"
    return "no matrix of its layers has input columns that can be removed one by one"


def _context_key(config: Any) -> str | None:
    config = config.get_text_config()
    key = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    saved = config.to_dict()
    return next((each for each in (key, "max_target_positions") if each in saved), None)


def _returned(output: Any) -> str | tuple[str, ...]:
    if isinstance(output, tuple | list):
        return ("hidden", *("none" for _ in output[1:]))
    return "hidden"


def _stored_name(checkpoint: TinyCheckpoint, names: ParameterNames, parameter: str) -> str:
    """Where the files hold a parameter, perhaps under the name of one that it is tied to."""
    known = dict(checkpoint.model.named_parameters(remove_duplicate=False))
    for name in checkpoint.tensors:
        if known.get(names.parameter_of(name)[0]) is known[parameter]:
            return name
    raise NotPrunable(f"its files do not hold {parameter}")


def _head_bias(checkpoint: TinyCheckpoint, names: ParameterNames) -> str | None:
    """Where the files hold the head's bias, perhaps under the name of one that it is tied to."""
    model = checkpoint.model
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is None:
        return None
    return _stored_name(checkpoint, names, f"{_path_of(model, head)}.bias")


def _layer_prefix(checkpoint: TinyCheckpoint, names: ParameterNames, path: str) -> str:
    """What tensors of a layer begin with in the files, `{}` for the number."""
    found: set[str] = set()
    for name in checkpoint.tensors:
        if names.parameter_of(name)[0].startswith(f"{path}.1."):
            start, number, _ = name.partition(".1.")
            if not number:
                raise NotPrunable(_APART)
            found.add(f"{start}.{{}}.")
    if len(found) != 1:
        raise NotPrunable(_APART)
    return found.pop()


class _Origins:
    """Where the slices of parameters come from: found by loading tensors that hold indices."""

    def __init__(self, checkpoint: TinyCheckpoint, names: ParameterNames, prefix: str) -> None:
        self._places: list[dict[str, Tensor]] = []
        layer = {n: t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
        self._bases: list[tuple[int, str]] = []
        self._prefix, self._tensors = prefix, layer
        for axis in (0, 1):
            marked, base = {}, 0
            for name, tensor in layer.items():
                size = tensor.shape[axis] if tensor.dim() > axis else 1
                view = [1] * tensor.dim()
                if tensor.dim() > axis:
                    view[axis] = size
                values = torch.arange(base, base + size, dtype=torch.float32).view(view)
                marked[name] = values.expand(tensor.shape).contiguous()
                self._bases.append((axis * (1 << 40) + base, name))
                base += size
            self._places.append(names.parameters(marked))

    def size(self, name: str, axis: int) -> int:
        """The length of an axis of a tensor, by its name in the layer."""
        return self._tensors[self._prefix + name].shape[axis]

    def places(self, parameter: str, axis: int) -> list[Place] | None:
        """Of each index along an axis of a parameter, the slice it is; None if it is none."""
        found: list[Place] = []
        for index in range(self._places[0][parameter].shape[axis]):
            for stored_axis in (0, 1):
                values = self._places[stored_axis][parameter].select(axis, index)
                if bool((values == values.flatten()[0]).all()):
                    found.append(self._place(int(values.flatten()[0]), stored_axis))
                    break
            else:
                return None
        return found

    def _place(self, marker: int, axis: int) -> Place:
        best = max(
            (base, name)
            for base, name in self._bases
            if base >> 40 == axis and base % (1 << 40) <= marker
        )
        return best[1].removeprefix(self._prefix), axis, marker - best[0] % (1 << 40)


def _pattern(
    found: FoundChannels, modules: dict[str, Any], path: str, origins: _Origins
) -> ChannelPattern | None:
    """The channels by the slices of tensors in the files; None where they are not slices."""
    output = modules[found.output]
    columns = origins.places(f"{path}{found.output}.weight", 0 if isinstance(output, Conv1D) else 1)
    if columns is None or len({(name, axis) for name, axis, _ in columns}) != 1:
        return None
    if sorted(index for _, _, index in columns) != list(range(found.width)):
        return None
    channel_of = [index for _, _, index in columns]  # By column in memory.
    slices: dict[tuple[str, int], dict[int, list[int]]] = {}
    for source, column_of in found.sources.items():
        rows = origins.places(
            f"{path}{source}.weight", 1 if isinstance(modules[source], Conv1D) else 0
        )
        if rows is None:
            return None
        for (name, axis, index), column in zip(rows, column_of, strict=True):
            slices.setdefault((name, axis), {}).setdefault(channel_of[column], []).append(index)
    sources = []
    for (name, axis), by_channel in slices.items():
        segments = _segments(by_channel, found.width)
        outputs = sum(len(indices) for indices in by_channel.values())
        if segments is None or outputs != origins.size(name, axis):  # Others share the tensor.
            return None
        sources.append(ChannelSource(name, axis, segments))
    name, axis, _ = columns[0]
    return ChannelPattern(name, axis, tuple(sources))


def _segments(by_channel: dict[int, list[int]], width: int) -> tuple[tuple[int, int], ...] | None:
    """(offset in widths, size) of regular slices; None if they are not regular."""
    if sorted(by_channel) != list(range(width)):
        return None
    first = sorted(by_channel[0])
    runs: list[list[int]] = []
    for index in first:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    segments = tuple((run[0] // width, len(run)) for run in runs)
    for channel, indices in by_channel.items():
        wanted = [
            offset * width + channel * size + step
            for offset, size in segments
            for step in range(size)
        ]
        if sorted(indices) != sorted(wanted):
            return None
    return segments


def as_entry(architecture: Architecture) -> dict[str, Any]:
    """An architecture as the table stores it: without what is as in most of them."""
    entry: dict[str, Any] = json.loads(json.dumps(asdict(architecture)))
    usual = {each.name: each.default for each in fields(architecture) if each.default != ()}
    return {key: value for key, value in entry.items() if value != usual.get(key, MISSING)}
