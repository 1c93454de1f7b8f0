"""A model as a stream: one decoder layer, or one tile of the vocabulary, resident at a time.

`WeightSource` is where weights come from: a checkpoint's reader, or that with some tensors replaced
by pruned ones that exist only in memory so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.decoder import Decoder, LayerTrace, LayerWeights
from strucprune_core.models.tensors import layer_tensors, tensor_name
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
    """A model's shape, its weights, and the device they visit.

    Attributes:
        config: The shape.
        source: Where tensors are read from.
        device: Where they are used. Computation is in float32.
    """

    config: ModelConfig
    source: WeightSource
    device: torch.device

    def layer(self, index: int) -> LayerWeights:
        """One decoder layer's tensors by role, float32, on the device."""
        return {
            role: self.tensor(tensor_name(self.config, index, role))
            for role in layer_tensors(self.config, index)
        }

    def tensor(self, name: str) -> Tensor:
        """A tensor outside the layers, float32, on the device."""
        return self.source.tensor(name, device=self.device, dtype=torch.float32)

    @torch.inference_mode()
    def run_layer(
        self, layer: int, weights: LayerWeights, hidden: NDArray[np.float32]
    ) -> LayerTrace:
        """One layer on a micro-batch held on the host, (b x n x d)."""
        x = torch.from_numpy(np.array(hidden)).to(self.device)
        return Decoder(self.config).forward_layer(self.config.blocks[layer], x, weights)

    def tiles(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a vocabulary matrix (V x d), a tile at a time."""
        vocabulary = self.config.vocab_size
        for start in range(0, vocabulary, VOCAB_TILE_ROWS):
            stop = min(start + VOCAB_TILE_ROWS, vocabulary)
            yield (
                start,
                self.source.rows(name, start, stop, device=self.device, dtype=torch.float32),
            )
