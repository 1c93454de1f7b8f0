"""What is stored of a token between two layers, and what a layer is given of it.

Hidden states come first. Some layers are given more: token ids, or what is made of ids and
embeddings; keys and values of an earlier layer; what the layer before has chosen. Whatever a layer
needs of the layers before it is stored behind the hidden states, so that every layer can be run by
itself. A token id is stored as a tiny number, exactly: it must not count where layers' outputs are
compared.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from strucprune_core.models.config import GenericModel, HandedOn

# Of float32's 24 bits none is lost, and the largest id is 6e-5.
_ID_UNIT = 2.0**-38
_KEYS = "shared_kv_states"  # What transformers calls the argument with keys and values.


@dataclass(slots=True)
class Beside:
    """What a pass has beside hidden states, of b sequences of n tokens.

    Attributes:
        ids: Token ids, (b, n).
        rows: Their rows in the embedding's table, (b, n, e).
        keys: By the type of layers, keys and values that were stored for them, (b, heads, n, w).
        handed: What the layer before returned for the next one, (b, n, columns).
    """

    ids: Tensor | None = None
    rows: Tensor | None = None
    keys: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    handed: Tensor | None = None


class StoredStates:
    """How a model's hidden states, and what is beside them, become a row of numbers per token.

    Args:
        generic: The model.
    """

    def __init__(self, generic: GenericModel) -> None:
        self._streams, self._axis = generic.streams, generic.streams_axis
        self._carried = generic.carried

    @property
    def with_tokens(self) -> bool:
        """Whether layers are given what depends on tokens themselves."""
        return self._carried.token_id

    def tokens_of_rows(self, b: int, n: int) -> Tensor | None:
        """The token of each row of a layer's matrices, where a token has several; else None."""
        if self._axis != 1:
            return None
        tokens = torch.arange(b * n).view(b, 1, n)
        return tokens.expand(b, self._streams[0], n).flatten()

    def store(self, hidden: Tensor, beside: Beside) -> Tensor:
        """Rows of numbers, (b, n, d), of a layer's input or output, and what is beside it."""
        hidden = self._in_a_row(hidden)
        carried, shape = self._carried, hidden.shape[:2]
        parts = [hidden]
        if beside.ids is not None and carried.token_id:
            parts.append(beside.ids[..., None].to(hidden.dtype) * _ID_UNIT)
        if beside.rows is not None and carried.embedding:
            parts.append(beside.rows)
        for shared in carried.keys:
            both = beside.keys.get(shared.kind)
            if both is None:
                parts.append(hidden.new_zeros(*shape, 2 * shared.heads * shared.head_dim))
            else:
                parts += [each.transpose(1, 2).flatten(2) for each in both]
        if carried.handed is not None:
            parts.append(_padded(carried.handed, beside.handed, hidden))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def load(self, stored: Tensor) -> tuple[Tensor, Beside]:
        """Hidden states as layers take them, and what is beside them, of rows (b, n, d)."""
        carried, beside = self._carried, Beside()
        b, n, d = stored.shape
        width = d - carried.columns
        hidden, rest = self._apart(stored[..., :width]), stored[..., width:]
        if carried.token_id:
            beside.ids = (rest[..., 0] / _ID_UNIT).round().long()
            rest = rest[..., 1:]
        if carried.embedding:
            beside.rows, rest = rest[..., : carried.embedding], rest[..., carried.embedding :]
        for shared in carried.keys:
            size = shared.heads * shared.head_dim
            key, value = (
                each.reshape(b, n, shared.heads, shared.head_dim).transpose(1, 2)
                for each in (rest[..., :size], rest[..., size : 2 * size])
            )
            beside.keys[shared.kind] = (key, value)
            rest = rest[..., 2 * size :]
        if carried.handed is not None:
            beside.handed = rest
            if carried.handed.integers:
                beside.handed = (rest[..., :n] / _ID_UNIT).round().long()
        return hidden, beside

    def _in_a_row(self, hidden: Tensor) -> Tensor:
        """A layer's hidden states, (b, n, d): those of a token one after the other."""
        if self._axis == 0:
            hidden = hidden.permute(1, 2, 0, 3)
        if self._axis == 1:
            streams = self._streams[0]
            parts = hidden.reshape(len(hidden), streams, -1, hidden.shape[-1])
            hidden = parts.transpose(1, 2)
        return hidden.flatten(2)

    def _apart(self, hidden: Tensor) -> Tensor:
        """The same, (b, n, d), as layers take them."""
        if not self._streams:
            return hidden
        hidden = hidden.reshape(*hidden.shape[:-1], *self._streams)
        if self._axis == 0:
            return hidden.permute(2, 0, 1, 3)
        return hidden.transpose(1, 2).flatten(1, 2) if self._axis == 1 else hidden

    def give(
        self, layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any], beside: Beside
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer's arguments, with what earlier layers left for it."""
        if self._carried.keys:
            options[_KEYS].update(beside.keys)
        handed = self._carried.handed
        if handed is None or beside.handed is None:
            return given, options
        at = _place_of(layer, handed.argument)
        if at < len(given):
            return (*given[:at], beside.handed, *given[at + 1 :]), options
        return given, {**options, handed.argument: beside.handed}

    def keep(self, options: dict[str, Any], output: Any, beside: Beside) -> None:
        """Keep what a layer that has run leaves for later ones."""
        if self._carried.keys:
            beside.keys = dict(options[_KEYS])
        if self._carried.handed is not None:
            beside.handed = output[self._carried.handed.place]


def _place_of(layer: nn.Module, argument: str) -> int:
    """Where a layer takes an argument."""
    return list(inspect.signature(type(layer).forward).parameters).index(argument) - 1


def _padded(handed: HandedOn, value: Tensor | None, like: Tensor) -> Tensor:
    """What a layer handed on, (b, n, columns)."""
    found = like.new_zeros(*like.shape[:2], handed.columns)
    if value is not None:
        numbers = value.to(like.dtype) * _ID_UNIT if handed.integers else value
        found[..., : value.shape[-1]] = numbers
    return found
