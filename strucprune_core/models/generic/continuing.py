"""A model in transformers' modules, one new token per sequence at a time, one layer resident.

What a layer remembers of a sequence (keys and values, recurrent states) is in transformers' cache
object. While a layer runs on the next token, its own part of the cache is real. The parts of the
other layers have the shapes that they had before that token, and no memory: positions and masks are
made from these. Between tokens all parts lie in scratch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import tensor_name
from strucprune_core.scratch.arrays import temporary_array

Rows = NDArray[np.float32]
Change = Callable[[str, Tensor], Tensor]
"""What becomes of a tensor, by where it is among the attributes of an object."""


class Continuation:
    """Some sequences of equal length, and what every layer remembers of them.

    Args:
        stream: The model.
        length: Most tokens of a sequence.
        scratch: Directory for what is remembered.
    """

    def __init__(self, stream: ModelStream, length: int, scratch: Path) -> None:
        if stream.modules is None:
            raise TypeError("not a generic model")
        self._stream, self._modules = stream, stream.modules
        self._cache: Any = DynamicCache(config=self._modules.model.config)
        # A config may count the layers of an encoder beside the decoder.
        while len(self._cache.layers) < stream.config.layers:
            self._cache.layers.append(DynamicLayer())
        self._outlines = list(self._cache.layers)
        self._kept = [_KeptLayer(length, scratch) for _ in self._outlines]
        pairs = zip(self._kept, self._outlines, strict=True)
        self._next = [kept.kept(fresh) for kept, fresh in pairs]

    def embed(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The first layer's input, (b, 1, d).

        Args:
            rows: Rows of the embedding of a new token for each sequence, (b, e).
            tokens: Its id, (b,).
        """
        self._outlines = list(self._next)
        self._cache.layers[:] = self._outlines
        ids = torch.arange(len(rows), device=rows.device)[:, None]
        return self._modules.embed(ids, rows, tokens[:, None], self._cache)

    def run_layer(self, layer: int, weights: LayerWeights, hidden: Tensor) -> Tensor:
        """A layer's output for the new token, (b, 1, d)."""
        prefix = tensor_name(self._stream.config, layer, "")
        self._cache.layers[:] = self._outlines
        real = self._kept[layer].restored(self._outlines[layer], self._stream.device)
        self._cache.layers[layer] = real
        run = self._modules.run_layer(layer, weights, prefix, hidden, cache=self._cache)
        self._next[layer] = self._kept[layer].kept(real)
        return run.hidden

    def remembered_bytes(self) -> int:
        """Bytes that the layer with most of them remembers so far."""
        sizes = (sum(t.numel() * t.element_size() for t in _tensors(each)) for each in self._next)
        return max(sizes, default=0)


class _KeptLayer:
    """The tensors that one layer remembers, in scratch."""

    def __init__(self, length: int, scratch: Path) -> None:
        self._length, self._scratch = length, scratch
        self._tensors: dict[str, _KeptTensor] = {}

    def kept(self, real: Any) -> Any:
        """Store a layer's part of the cache; the same without memory."""

        def store(path: str, tensor: Tensor) -> Tensor:
            if path not in self._tensors:
                self._tensors[path] = _KeptTensor(self._length, self._scratch)
            self._tensors[path].store(tensor)
            return _outline(tensor)

        return _with_tensors(real, store)

    def restored(self, outline: Any, device: torch.device) -> Any:
        """The part that was stored last."""
        return _with_tensors(outline, lambda path, tensor: self._tensors[path].load(device))


class _KeptTensor:
    """A tensor that may grow by one along an axis with every token."""

    def __init__(self, length: int, scratch: Path) -> None:
        self._length, self._scratch = length, scratch
        self._shape: tuple[int, ...] = ()
        self._small: Tensor | None = None
        self._array: Rows | None = None

    def store(self, tensor: Tensor) -> None:
        """Keep a copy. Of a tensor that has grown, only what is new is written."""
        shape = tuple(tensor.shape)
        if tensor.dtype != torch.float32 or not tensor.dim():  # Positions, windows: small.
            self._small, self._array = tensor.clone(), None
        elif self._array is None or not self._fits(shape):
            array = temporary_array(self._scratch, self._room(shape))
            array[_inside(shape)] = tensor.cpu().numpy()
            self._array, self._small = array, None
        else:
            place, axis = list(_inside(shape)), _grown_axis(self._shape, shape)
            if axis is not None:
                place[axis] = slice(shape[axis] - 1, shape[axis])
                tensor = tensor.narrow(axis, shape[axis] - 1, 1)
            self._array[tuple(place)] = tensor.cpu().numpy()
        self._shape = shape

    def load(self, device: torch.device) -> Tensor:
        """What was stored last."""
        if self._small is not None:
            return self._small.clone()
        if self._array is None:
            raise RuntimeError("nothing was stored")
        return torch.from_numpy(np.array(self._array[_inside(self._shape)])).to(device)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        room = () if self._array is None else self._array.shape
        return len(room) == len(shape) and all(a <= b for a, b in zip(shape, room, strict=True))

    def _room(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that it will have at most, if it grows as it did."""
        axis = _grown_axis(self._shape, shape)
        if axis is None:
            return shape
        return (*shape[:axis], max(self._length, shape[axis]), *shape[axis + 1 :])


def _grown_axis(before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """The axis that is one longer, if nothing else has changed."""
    if len(before) != len(after):
        return None
    changed = [
        axis for axis, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    ]
    return changed[0] if len(changed) == 1 and after[changed[0]] == before[changed[0]] + 1 else None


def _inside(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)


def _outline(tensor: Tensor) -> Tensor:
    """A tensor of the same shape whose values share one place in memory; small ones stay."""
    if tensor.dtype != torch.float32 or not tensor.dim():
        return tensor.clone()
    return tensor.new_zeros(()).expand(tensor.shape)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors among the attributes of a layer's part of the cache."""
    found: list[Tensor] = []

    def note(path: str, tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _with_tensors(value, note)
    return found


def _with_tensors(value: Any, change: Change) -> Any:
    """A copy of a layer's part of the cache with other tensors."""
    other = copy.copy(value)
    other.__dict__.update(_mapped(vars(value), change, ""))
    return other


def _mapped(value: Any, change: Change, path: str) -> Any:
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, dict):
        return {key: _mapped(each, change, f"{path}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, change, f"{path}/{n}") for n, each in enumerate(value))
    return value
