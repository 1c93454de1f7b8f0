"""A checkpoint run by transformers, one matrix at a time: the reference of both reload checks.

transformers builds the model from config.json with its parameters on the meta device, so a wrong
name, shape or width fails here. Hooks fill each module of a decoder layer from the files just
before it runs, and empty it afterwards; embeddings and head are read in tiles. So a checkpoint of
any size is checked in the memory of its largest matrix. All computation is transformers' own, from
token ids to logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers import __version__ as transformers_version

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.export import modeling_strucprune
from strucprune_core.models.generic.meta_parameters import skeleton
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import (
    expected_tensors,
    is_derived,
    layer_tensors,
    stored_tensors,
    tensor_name,
)

_PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.
REFERENCE = f"transformers {transformers_version}"

# Attributes of modules that number a layer, or count what pruning removes: these do not make layers
# of different kinds.
_COUNTS = {
    "layer_idx",
    "layer_id",
    "in_features",
    "out_features",
    "nf",
    "nx",
    "num_heads",
    "num_key_value_heads",
    "num_key_value_groups",
    "num_experts",
    "intermediate_size",
    "intermediate_dim",
    "split_size",
}


@dataclass(slots=True)
class ReferenceRun:
    """What transformers computed.

    Attributes:
        inputs: Input of each layer that was to be kept, (sequences x length x d), by its number.
        outputs: Its output, likewise.
        logits: Of the last position of each sequence, (sequences x V) float32.
    """

    inputs: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    outputs: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def reference_logits(
    stream: ModelStream, config_json: bytes, tensor_names: set[str], tokens: NDArray[np.int32]
) -> Tensor:
    """Logits of a checkpoint as transformers computes them, with all layers."""
    return Reference(stream, config_json, tensor_names).run(tokens).logits


class Reference:
    """A checkpoint in transformers' own modules, which are filled while they run."""

    def __init__(self, stream: ModelStream, config_json: bytes, tensor_names: set[str]) -> None:
        """Build the model and compare its tensors with those of the files, by name.

        Args:
            stream: The checkpoint's tensors.
            config_json: Its config.json.
            tensor_names: Names of all its tensors.

        Raises:
            InvalidCheckpoint: transformers cannot build the model, or expects other tensors than
                there are.
        """
        self._stream = stream
        differing = set(stored_tensors(stream.config)) ^ tensor_names
        if stream.config.tie_word_embeddings:  # The head may be stored all the same: see below.
            differing.discard(stream.config.names.head)
        model = _skeleton(stream, json.loads(config_json))
        # Our reader ignores tensors that transformers derives. If it loads one, so must we.
        loaded = set(model.state_dict())
        differing = {name for name in differing if name in loaded or not is_derived(name)}
        if differing:
            raise _other_tensors(sorted(differing))
        self._model = model
        self._layers = list(_PRUNED.decoder_layers(model))
        _load_rest(model, stream)
        for index, layer in enumerate(self._layers):
            _check_layer(layer, index, stream)
        # transformers ties a stored head only to an embedding of the same values.
        names = stream.config.names
        self._head = names.head if names.head in tensor_names else names.embedding

    def kinds(self) -> list[object]:
        """A value for each layer that is equal for layers which differ in nothing but widths."""
        types = getattr(self._model.config, "layer_types", None) or [None] * len(self._layers)
        return [
            (kind, tuple(_attributes(layer)))
            for kind, layer in zip(types, self._layers, strict=True)
        ]

    @torch.inference_mode()
    def run(self, tokens: NDArray[np.int32], only: Collection[int] | None = None) -> ReferenceRun:
        """Run token ids, (sequences x length), through the model. For one call.

        Args:
            tokens: Token ids.
            only: Layers to run, with the first one among them; their inputs and outputs are kept.
                The others return their input, and their weights are not read. None: all layers.

        Raises:
            InvalidCheckpoint: a tensor has another shape than transformers expects.
        """
        run = ReferenceRun()
        for index, layer in enumerate(self._layers):
            if only is None or index in only:
                _stream_layer(layer, index, self._stream)
            if only is not None and index in only:
                _keep(layer, index, run)
        if only is not None:
            others = [layer for index, layer in enumerate(self._layers) if index not in only]
            _skip(others, self._layers[0])
        ids, used = np.unique(tokens, return_inverse=True)
        _fill_embedding(self._model.get_input_embeddings(), self._stream, ids)
        self._model.set_output_embeddings(_TiledHead(self._stream, self._head))
        output = self._model(
            input_ids=torch.from_numpy(used.reshape(tokens.shape)).to(self._stream.device),
            use_cache=False,
            logits_to_keep=1,
        )
        run.logits = output.logits[:, -1].float().cpu()
        return run


class _TiledHead(nn.Module):
    """A head whose matrix is read from the files and multiplied tile by tile."""

    def __init__(self, stream: ModelStream, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._name = name

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits before any soft cap."""
        tiles = self._stream.tiles_of(self._name)
        return torch.cat([hidden @ rows.T for _, rows in tiles], dim=-1)


def _fill_embedding(module: Any, stream: ModelStream, ids: NDArray[np.int32]) -> None:
    """Give the embedding the rows of these tokens (ascending): token k of the model is ids[k]."""
    table = torch.empty(len(ids), stream.config.embedding_size, device=stream.device)
    for first, rows in stream.tiles_of(stream.config.names.embedding):
        start, stop = np.searchsorted(ids, (first, first + len(rows)))
        wanted = torch.from_numpy(ids[start:stop].astype(np.int64) - first)
        table[start:stop] = rows[wanted.to(rows.device)]
        del rows
    module.weight = nn.Parameter(table, requires_grad=False)
    module.padding_idx = None  # It names a row, and matters in training only.


def _keep(layer: nn.Module, index: int, run: ReferenceRun) -> None:
    """Keep a layer's input and output."""

    def before(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        run.inputs[index] = _hidden(given, options).cpu().numpy().copy()

    def after(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        run.outputs[index] = hidden.cpu().numpy().copy()

    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(after)


def _skip(layers: list[Any], first: nn.Module) -> None:
    """Make layers return their input, in the form of the `first` one's result."""
    in_tuple = False

    def learn(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        nonlocal in_tuple
        in_tuple = isinstance(output, tuple)

    def hand_on(*given: Any, **options: Any) -> Any:
        hidden = _hidden(given, options)
        return (hidden,) if in_tuple else hidden

    first.register_forward_hook(learn)
    for layer in layers:
        layer.forward = hand_on


def _hidden(given: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    hidden: Tensor = given[0] if given else options["hidden_states"]
    return hidden


def _attributes(layer: nn.Module) -> Iterator[tuple[str, str, str, object]]:
    """What distinguishes kinds of layers: their modules, and the settings of these."""
    for path, module in layer.named_modules():
        yield path, type(module).__name__, "", None
        for name, value in sorted(vars(module).items()):
            plain = isinstance(value, bool | int | float | str) and not name.startswith("_")
            if plain and name not in _COUNTS:
                yield path, "", name, value


def _skeleton(stream: ModelStream, raw: dict[str, Any]) -> Any:
    """The model without memory for its parameters; buffers are real, on the stream's device."""
    # Only eager attention applies a soft cap. Otherwise transformers uses the class's own choice.
    implementation = None if stream.config.attention_soft_cap is None else "eager"
    return skeleton(lambda: _built(raw, implementation), stream.device)


def _built(raw: dict[str, Any], implementation: str | None) -> Any:
    """The model as `from_pretrained` makes it, before it has weights."""
    model_type = raw["model_type"]
    if model_type in _PRUNED.CONFIGS:
        config = _PRUNED.CONFIGS[model_type].from_dict(raw)
        config._attn_implementation = implementation
        return _PRUNED.MODELS[model_type](config)
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[model_type].from_dict(raw),
        attn_implementation=implementation,
        dtype=torch.float32,
    )


def _load_rest(model: Any, stream: ModelStream) -> None:
    """Load the tensors outside the decoder layers, except vocabulary matrices."""
    config = stream.config
    in_layers = {
        tensor_name(config, layer, role)
        for layer in range(config.layers)
        for role in layer_tensors(config, layer)
    }
    rest = set(expected_tensors(config)) - in_layers - {config.names.embedding, config.names.head}
    layers = config.names.layer.partition("{}")[0]
    result = model.load_state_dict(
        {name: stream.tensor(name) for name in rest}, strict=False, assign=True
    )
    # Some families call the head by another name in memory than in their files.
    vocabulary = {config.names.embedding, config.names.head, "lm_head.weight"}
    wanted = [
        name
        for name in result.missing_keys
        if not name.startswith(layers) and name not in vocabulary
    ]
    if wanted or result.unexpected_keys:
        raise _other_tensors([*wanted, *result.unexpected_keys])


def _check_layer(layer: nn.Module, index: int, stream: ModelStream) -> None:
    """Compare the names of a layer's parameters with those of the files' tensors."""
    differing = set(_readers(stream, index)) ^ {name for name, _ in layer.named_parameters()}
    if differing:
        raise _other_tensors([f"layer {index}: {name}" for name in sorted(differing)])


def _stream_layer(layer: nn.Module, index: int, stream: ModelStream) -> None:
    """Give each module of a layer its weights only while it runs."""
    readers = _readers(stream, index)
    for path, module in layer.named_modules():
        prefix = f"{path}." if path else ""
        own = {name: prefix + name for name, _ in module.named_parameters(recurse=False)}
        if own:
            where = f"layer {index}: {path}"
            _fill_while_running(module, where, {n: readers[full] for n, full in own.items()})


def _fill_while_running(
    module: nn.Module, where: str, readers: dict[str, Callable[[], Tensor]]
) -> None:
    """`readers` give the module's own parameters by name."""
    shapes = {name: getattr(module, name).shape for name in readers}

    def fill(module: nn.Module, arguments: Any) -> None:
        for name, read in readers.items():
            tensor = read()
            if tensor.shape != shapes[name]:
                raise _other_tensors([f"{where}.{name} of shape {tuple(shapes[name])}"])
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))

    def empty(module: nn.Module, arguments: Any, output: Any) -> None:
        for name, shape in shapes.items():
            setattr(module, name, nn.Parameter(torch.empty(shape, device="meta"), False))

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(empty)


def _readers(stream: ModelStream, index: int) -> dict[str, Callable[[], Tensor]]:
    """Functions that read a layer's tensors, by transformers' names: experts are one tensor."""
    config = stream.config
    block, names = config.blocks[index], {}
    for role in layer_tensors(config, index):
        names[role.replace("block_sparse_moe.", "mlp.")] = tensor_name(config, index, role)
    if block.names.router is None or config.model_type in _PRUNED.CONFIGS:
        return {name: partial(stream.tensor, stored) for name, stored in names.items()}
    experts = range(len(block.ffn_widths))

    def of_experts(role: str) -> list[str]:
        renamed = role.replace("block_sparse_moe.", "mlp.")
        return [names.pop(f"{renamed.format(expert)}.weight") for expert in experts]

    gates, ups = of_experts(str(block.names.gate)), of_experts(str(block.names.up))
    downs = of_experts(block.names.down)

    def stacked(stored: list[str]) -> Tensor:
        return torch.stack([stream.tensor(name) for name in stored])

    return {
        **{name: partial(stream.tensor, stored) for name, stored in names.items()},
        "mlp.experts.gate_up_proj": lambda: torch.cat([stacked(gates), stacked(ups)], dim=1),
        "mlp.experts.down_proj": lambda: stacked(downs),
    }


def _other_tensors(names: list[str]) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"transformers expects other tensors than the checkpoint holds: {names[:3]}"
    )
