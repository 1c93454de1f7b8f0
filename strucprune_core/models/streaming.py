"""A model as a stream: one decoder layer, or one tile of the vocabulary, resident at a time.

`WeightSource` is where weights come from: a checkpoint's reader, or that with some tensors replaced
by pruned ones that exist only in memory so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strucprune_core.models.adapter import Adapter, LayerWeights
from strucprune_core.tiling import VOCAB_TILE_ROWS


class WeightSource(Protocol):
    """Tensors by checkpoint name."""

    def tensor(
        self, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = ...
    ) -> Tensor:
        """A whole tensor."""

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = ...,
    ) -> Tensor:
        """Rows [start, stop) of a tensor's first dimension."""


@dataclass(frozen=True, slots=True)
class ModelStream:
    """An architecture, its weights, and the device they visit.

    Attributes:
        adapter: The architecture.
        source: Where tensors are read from.
        device: Where they are used. Computation is in float32.
    """

    adapter: Adapter
    source: WeightSource
    device: torch.device

    def layer(self, index: int) -> LayerWeights:
        """One decoder layer's tensors, float32, on the device."""
        return {
            role: self.source.tensor(
                self.adapter.tensor_name(index, role), device=self.device, dtype=torch.float32
            )
            for role in self.adapter.roles()
        }

    def final_norm(self) -> Tensor:
        """Weight of the norm before the LM head, (d,)."""
        return self.source.tensor(self.adapter.final_norm, device=self.device, dtype=torch.float32)

    def tiles(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a vocabulary matrix (V x d), a tile at a time."""
        vocabulary = self.adapter.config.vocab_size
        for start in range(0, vocabulary, VOCAB_TILE_ROWS):
            stop = min(start + VOCAB_TILE_ROWS, vocabulary)
            yield (
                start,
                self.source.rows(name, start, stop, device=self.device, dtype=torch.float32),
            )
