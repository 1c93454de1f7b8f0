"""A checkpoint run by transformers, one matrix at a time: the reload check's reference.

The model is built by transformers from the written config.json with its parameters on the meta
device, so a wrong name, shape or width fails here. Hooks fill each module of a decoder layer from
the written shards just before it runs and empty it after, so a checkpoint of any size is checked in
the memory of its largest matrix. Everything that is computed is transformers' own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import __version__ as transformers_version

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.export import modeling_strucprune
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name
from strucprune_core.models.vocabulary import logits_of_output, token_embeddings

_PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.
REFERENCE = f"transformers {transformers_version}"


@torch.inference_mode()
def reference_logits(
    stream: ModelStream, config_json: bytes, tensor_names: set[str], tokens: NDArray[np.int32]
) -> Tensor:
    """Logits of a checkpoint as transformers computes them.

    Args:
        stream: The checkpoint's tensors.
        config_json: Its config.json.
        tensor_names: Names of all its tensors.
        tokens: Token ids, (sequences x length).

    Returns:
        Logits of the last position of each sequence, (sequences x V) float32.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than there are.
    """
    differing = set(expected_tensors(stream.config)) ^ tensor_names
    if stream.config.tie_word_embeddings:  # The head may be stored or not: it is not read.
        differing.discard(stream.config.names.head)
    if differing:
        raise _other_tensors(sorted(differing))
    model = _skeleton(stream, json.loads(config_json))
    _load_rest(model, stream)
    for index, layer in enumerate(_PRUNED.decoder_layers(model)):
        _stream_layer(layer, index, stream)
    output = model.base_model(inputs_embeds=token_embeddings(stream, tokens), use_cache=False)
    return logits_of_output(stream, output.last_hidden_state[:, -1])


def _skeleton(stream: ModelStream, raw: dict[str, Any]) -> Any:
    """The model without memory for its parameters; buffers are real, on the stream's device."""
    model_type = raw["model_type"]
    # Only eager attention applies a soft cap.
    implementation = "sdpa" if stream.config.attention_soft_cap is None else "eager"
    with _parameters_on_meta():
        if model_type in _PRUNED.CONFIGS:
            config = _PRUNED.CONFIGS[model_type].from_dict(raw)
            config._attn_implementation = implementation
            model = _PRUNED.MODELS[model_type](config)
        else:
            plain = {key: value for key, value in raw.items() if key != "model_type"}
            config = AutoConfig.for_model(model_type, **plain)
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=implementation, dtype=torch.float32
            )
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(stream.device))
    return model.eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside have a shape but no memory.

    The large ones never have any: a linear layer or an embedding is made on the meta device.
    """
    module_class: Any = nn.Module
    register = module_class.register_parameter
    makers: list[Any] = [nn.Linear, nn.Embedding]
    plain = [maker.__init__ for maker in makers]

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    def made_on_meta(make: Callable[..., None]) -> Callable[..., None]:
        return lambda self, *given, **options: make(self, *given, **{**options, "device": "meta"})

    module_class.register_parameter = on_meta
    for maker, make in zip(makers, plain, strict=True):
        maker.__init__ = made_on_meta(make)
    try:
        yield
    finally:
        module_class.register_parameter = register
        for maker, make in zip(makers, plain, strict=True):
            maker.__init__ = make


def _load_rest(model: Any, stream: ModelStream) -> None:
    """Load what is neither a decoder layer nor a vocabulary matrix."""
    config = stream.config
    in_layers = {
        tensor_name(config, layer, role)
        for layer in range(config.layers)
        for role in layer_tensors(config, layer)
    }
    rest = set(expected_tensors(config)) - in_layers - {config.names.embedding, config.names.head}
    layers = config.names.layer.partition("{}")[0]
    found = model.load_state_dict(
        {name: stream.tensor(name) for name in rest}, strict=False, assign=True
    )
    # Some families call the head by another name in memory than in their files.
    vocabulary = {config.names.embedding, config.names.head, "lm_head.weight"}
    wanted = [
        name
        for name in found.missing_keys
        if not name.startswith(layers) and name not in vocabulary
    ]
    if wanted or found.unexpected_keys:
        raise _other_tensors([*wanted, *found.unexpected_keys])


def _stream_layer(layer: nn.Module, index: int, stream: ModelStream) -> None:
    """Let each module of a layer have its weights only while it runs."""
    readers = _readers(stream, index)
    differing = set(readers) ^ {name for name, _ in layer.named_parameters()}
    if differing:
        raise _other_tensors([f"layer {index}: {name}" for name in sorted(differing)])
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
    """How to read a layer's tensors, by transformers' names: experts are one tensor there."""
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
