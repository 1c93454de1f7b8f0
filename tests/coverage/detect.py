"""Which channels of a layer can be removed, found by trying instead of by names.

A channel of an FFN is one output of the matrices before its activation and one input of the matrix
after it. To find these matrices, one output at a time of a linear module is changed, each at a
token of its own: for a channel, the input of the matrix after it changes in exactly one column, at
exactly that token. Attention spreads a change over the tokens that follow, and a norm over all
columns, so what passes through them is told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Changes to try: an activation may be flat (ReLU) or clipped where a value lies.
_CHANGES = (0.5, -0.5, 4.0, -4.0)


class NotPrunable(Exception):
    """An architecture is refused; the message is the reason, for users."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """The arguments that a model gives to one of its decoder layers."""

    given: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FoundChannels:
    """A matrix whose input columns can go, and the outputs that make each of them.

    Attributes:
        output: The module after the activation, its path in the layer.
        width: Its input columns.
        sources: Of each module before it, by path: the column that each of its outputs becomes.
    """

    output: str
    width: int
    sources: dict[str, list[int]]


def layer_calls(model: Any, layers: nn.ModuleList, tokens: Tensor) -> dict[int, LayerCall]:
    """What each layer is given in a forward pass over token ids, (b, n), by its number.

    Layers that only run on images have no entry.

    Raises:
        NotPrunable: a layer does more than once, or the first or last one does not.
    """
    calls: dict[int, LayerCall] = {}
    handles = []
    for number, layer in enumerate(list(layers)):

        def keep(
            module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], at: int = number
        ) -> None:
            if at in calls:
                raise NotPrunable("its layers are run more than once for a token")
            calls[at] = LayerCall(given, options)

        handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not {0, len(layers) - 1} <= calls.keys():
        raise NotPrunable("some of its layers do not run on text alone")
    return dict(sorted(calls.items()))


def linear_modules(layer: nn.Module) -> dict[str, nn.Module]:
    """Linear modules of a layer by path."""
    return {
        path: module
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear module."""
    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


@torch.no_grad()
def find_channels(layer: nn.Module, call: LayerCall, hidden_size: int) -> list[FoundChannels]:
    """The matrices of a layer whose input columns are channels.

    Args:
        layer: The layer, with weights.
        call: Its arguments in a pass over one sequence of at least 8 tokens.
        hidden_size: Width of the residual stream.
    """
    modules = linear_modules(layer)
    outputs = {
        path: shape_of(module)[1]
        for path, module in modules.items()
        if shape_of(module)[0] == hidden_size
    }
    found: dict[str, dict[str, list[int]]] = {}
    for path, module in modules.items():
        rows, columns = shape_of(module)
        wanted = {name for name, width in outputs.items() if name != path and not rows % width}
        if columns != hidden_size or not wanted:
            continue
        for name, column_of in _columns_of(layer, call, modules, path, wanted).items():
            found.setdefault(name, {})[path] = column_of
    return [FoundChannels(name, outputs[name], sources) for name, sources in found.items()]


def _columns_of(
    layer: nn.Module,
    call: LayerCall,
    modules: dict[str, nn.Module],
    source: str,
    outputs: set[str],
) -> dict[str, list[int]]:
    """Of each matrix that depends on `source` channel by channel: the column of each output."""
    rows = shape_of(modules[source])[0]
    left = set(outputs)
    columns: dict[str, list[int]] = {name: [] for name in outputs}
    plain = _inputs(layer, call, modules, left)
    left = {name for name in left if name in plain}
    for start, stop in _spans(rows, next(iter(plain.values())).shape[0] if plain else 1):
        changed = {name: torch.zeros_like(plain[name], dtype=torch.bool) for name in left}
        for change in _CHANGES:
            tried = _inputs(layer, call, modules, left, source, (start, stop, change))
            for name in list(left):
                changed[name] |= tried[name] != plain[name]
                at, rest = changed[name][: stop - start], changed[name][stop - start :]
                if bool(rest.any()) or bool((at.sum(-1) > 1).any()):
                    left.discard(name)
            if not left:
                return {}
        for name in list(left):
            at = changed[name][: stop - start]
            if bool((at.sum(-1) == 1).all()):
                columns[name] += at.int().argmax(-1).tolist()
            else:
                left.discard(name)
    return {
        name: columns[name]
        for name in left
        if len(set(_counts(columns[name], plain[name].shape[-1]))) == 1
    }


def _counts(columns: list[int], width: int) -> list[int]:
    counts = [0] * width
    for column in columns:
        counts[column] += 1
    return counts


def _spans(rows: int, tokens: int) -> Iterator[tuple[int, int]]:
    """Outputs to change in one pass: fewer than there are tokens, so that others can be seen."""
    step = max(1, tokens - 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _inputs(
    layer: nn.Module,
    call: LayerCall,
    modules: dict[str, nn.Module],
    wanted: set[str],
    source: str | None = None,
    change: tuple[int, int, float] = (0, 0, 0.0),
) -> dict[str, Tensor]:
    """Inputs of modules, (tokens x width), while some outputs of one are changed."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in wanted:

        def keep(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
            seen[name] = given[0].detach().reshape(-1, given[0].shape[-1]).clone()

        handles.append(modules[name].register_forward_pre_hook(keep))
    if source is not None:
        start, stop, step = change

        def shift(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            flat = output.clone().view(-1, output.shape[-1])
            # A module that sees some of the tokens alone is not before an FFN's output.
            for token, row in zip(range(len(flat)), range(start, stop), strict=False):
                flat[token, row] += step
            return flat.view_as(output)

        handles.append(modules[source].register_forward_hook(shift))
    try:
        layer(*call.given, **call.options)
    finally:
        for handle in handles:
            handle.remove()
    return seen
