"""Decoder layers of vLLM's own classes, each as narrow as the checkpoint says.

vLLM's models build layers by `make_layers`, and layers read their sizes from the model's config. So
while a layer is built, the config has that layer's sizes. What sizes cannot say is changed in the
layer afterwards: blocks that are not there, and fewer heads where the family has no `head_dim`.

Loaded in vLLM's processes only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from strucprune_core.serving.shapes import (
    EXPERT_MULTIPLE,
    LayerShape,
    check_split,
    expert_width,
    layer_shapes,
)

_EXPERT_WEIGHT = re.compile(r"layers\.(\d+)\..*\.experts\.\d+\.(w1|w2|w3|(?:gate|up|down)_proj)\.")
_DOWN = ("w2", "down_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """How vLLM writes a family.

    Attributes:
        module: Where its layers are built: calls `make_layers`.
        widths: Keys of the config for the width of the FFN, or of an expert.
        fused: Names of the matrices for queries, keys and values, and for the output, in attention
            that takes the width of a head from the hidden size. None: it reads `head_dim`.
    """

    module: Any
    widths: tuple[str, ...] = ("intermediate_size",)
    fused: tuple[str, str] | None = None


@contextmanager
def pruned_layers(vllm_config: Any, family: Family) -> Iterator[None]:
    """Within it, vLLM builds the layers of a model with the shapes that its config lists.

    Args:
        vllm_config: Of the engine.
        family: Of the model.

    Raises:
        ValueError: the tensor parallel size does not divide a layer's shape.
    """
    config = vllm_config.model_config.hf_config
    shapes = layer_shapes(config.strucprune)
    check_split(shapes, get_tensor_model_parallel_world_size())
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    if family.fused is None:
        config.head_dim = head_dim
    make_layers = family.module.make_layers

    def make(layers: int, layer_of: Callable[..., nn.Module], prefix: str) -> Any:
        if layers != len(shapes):
            raise ValueError(f"config.json lists {len(shapes)} layers; the model has {layers}")

        def pruned(prefix: str) -> nn.Module:
            shape = shapes[int(prefix.rpartition(".")[2])]
            with _sizes(config, family, shape):
                layer = layer_of(prefix=prefix)
            if family.fused is not None and 0 < shape.query_heads < config.num_attention_heads:
                _fewer_heads(vllm_config, layer, family.fused, head_dim, shape, prefix)
            _remove_blocks(vllm_config, layer, shape, prefix)
            return layer

        return make_layers(layers, pruned, prefix)

    with patch.object(family.module, "make_layers", make):
        yield


@contextmanager
def _sizes(config: Any, family: Family, shape: LayerShape) -> Iterator[None]:
    """Within it, the config has the sizes of a layer. Blocks that are not there get small ones."""
    devices = get_tensor_model_parallel_world_size()
    if not shape.ffn:
        width = EXPERT_MULTIPLE * devices
    else:
        width = shape.ffn[0] if len(shape.ffn) == 1 else expert_width(shape, devices)
    sizes = dict.fromkeys(family.widths, width)
    if family.fused is None:
        sizes["num_attention_heads"] = shape.query_heads or devices
        sizes["num_key_value_heads"] = shape.kv_heads or devices
    with ExitStack() as stack:
        for key, size in sizes.items():
            stack.callback(setattr, config, key, getattr(config, key, None))
            setattr(config, key, size)
        yield


class FewerHeads(nn.Module):
    """Attention whose heads together are narrower than the residual stream, fused, with biases."""

    def __init__(
        self,
        vllm_config: Any,
        names: tuple[str, str],
        hidden: int,
        head_dim: int,
        heads: int,
        bias: bool,
        prefix: str,
    ) -> None:
        super().__init__()
        self._names = names
        quant_config = vllm_config.quant_config
        inputs, output = (f"{prefix}.{name}" for name in names)
        setattr(
            self,
            names[0],
            QKVParallelLinear(
                hidden, head_dim, heads, bias=bias, quant_config=quant_config, prefix=inputs
            ),
        )
        setattr(
            self,
            names[1],
            RowParallelLinear(
                heads * head_dim, hidden, bias=bias, quant_config=quant_config, prefix=output
            ),
        )
        self.attn = Attention(
            heads // get_tensor_model_parallel_world_size(),
            head_dim,
            scale=head_dim**-0.5,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Attention's output (tokens x hidden)."""
        inputs, output = (getattr(self, name) for name in self._names)
        query, key, value = inputs(hidden_states)[0].chunk(3, dim=-1)
        result: Tensor = output(self.attn(query, key, value))[0]
        return result


def _fewer_heads(
    vllm_config: Any,
    layer: Any,
    names: tuple[str, str],
    head_dim: int,
    shape: LayerShape,
    prefix: str,
) -> None:
    config = vllm_config.model_config.hf_config
    attention = _child(layer, ("self_attn", "attn"))
    bias = getattr(getattr(layer, attention), names[0]).bias is not None
    _forget(vllm_config, f"{prefix}.{attention}.")
    module = FewerHeads(
        vllm_config,
        names,
        config.hidden_size,
        head_dim,
        shape.query_heads,
        bias,
        f"{prefix}.{attention}",
    )
    setattr(layer, attention, module)


class NoNorm(nn.Module):
    """In the place of the norm of a block that was removed."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Any:
        """The input; with a residual, the sum, and the sum as the next residual."""
        if residual is None:
            return hidden_states
        total = hidden_states + residual
        return total, total


class NoBlock(nn.Module):
    """In the place of attention or of an FFN that was removed: adds nothing."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Zeros."""
        return torch.zeros_like(hidden_states)


class NoMatrix(nn.Module):
    """In the place of a matrix of an FFN that was removed; like vLLM's, returns (output, bias)."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Zeros."""
        return torch.zeros_like(hidden_states), None


def _remove_blocks(vllm_config: Any, layer: Any, shape: LayerShape, prefix: str) -> None:
    """Put modules without weights in the place of blocks that a layer does not have."""
    norms: list[str] = []
    if not shape.query_heads:
        name = _child(layer, ("self_attn", "attn"))
        setattr(layer, name, NoBlock())
        _forget(vllm_config, f"{prefix}.{name}.")
        norms += ["input_layernorm", "ln_1", "self_attn_layer_norm"]
    if not shape.ffn:
        if hasattr(layer, "fc1"):
            layer.fc1, layer.fc2 = NoMatrix(), NoMatrix()
        else:
            name = _child(layer, ("mlp", "block_sparse_moe"))
            setattr(layer, name, NoBlock())
            _forget(vllm_config, f"{prefix}.{name}.")
        norms += ["ln_2", "final_layer_norm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    # gemma has a norm of this name behind attention, others before the FFN.
    behind_attention = hasattr(layer, "pre_feedforward_layernorm")
    if not (shape.query_heads if behind_attention else shape.ffn):
        norms.append("post_attention_layernorm")
    for name in norms:
        if hasattr(layer, name):
            setattr(layer, name, NoNorm())


def _child(layer: nn.Module, names: Iterable[str]) -> str:
    return next(name for name in names if hasattr(layer, name))


def _forget(vllm_config: Any, prefix: str) -> None:
    """Take modules whose names begin so from vLLM's list of those that get a KV cache."""
    known = vllm_config.compilation_config
    for name in [each for each in known.static_forward_context if each.startswith(prefix)]:
        del known.static_forward_context[name]
        if name in known.static_all_moe_layers:
            known.static_all_moe_layers.remove(name)


def filled_up(
    weights: Iterable[tuple[str, Tensor]], section: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Weights, those of experts with zeros up to the widest of their layer.

    vLLM keeps all experts of a layer in one tensor. A channel of zeros adds nothing: the
    activations of these families are 0 at 0.

    Args:
        weights: By name, as they are read from the checkpoint.
        section: `strucprune` of config.json.
    """
    shapes, devices = layer_shapes(section), get_tensor_model_parallel_world_size()
    for name, weight in weights:
        found = _EXPERT_WEIGHT.search(name)
        if found is not None:
            width = expert_width(shapes[int(found[1])], devices)
            axis = 1 if found[2] in _DOWN else 0
            size = list(weight.shape)
            size[axis] = width - size[axis]
            weight = torch.cat([weight, weight.new_zeros(size)], axis)
        yield name, weight
