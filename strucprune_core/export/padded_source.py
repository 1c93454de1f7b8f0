"""A model's tensors with FFN channels of zeros added: the same function in wider matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.tensors import expected_tensors


class PaddedSource:
    """A `WeightSource` that fills another's tensors up with zeros behind their rows and columns.

    A channel without weights gives act(0) * 0 = 0 to a gated FFN's down projection, and its column
    there is zero as well.
    """

    def __init__(self, source: WeightSource, narrow: ModelConfig, config: ModelConfig) -> None:
        """`narrow` has the source's shapes, `config` those to fill up to."""
        self._source = source
        self._narrow, self._shapes = expected_tensors(narrow), expected_tensors(config)

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A whole tensor, filled up."""
        narrow = self._source.tensor(name, device=device, dtype=dtype)
        shape = self._shapes[name]
        if tuple(narrow.shape) == shape:
            return narrow
        filled = narrow.new_zeros(shape)
        filled[tuple(slice(size) for size in narrow.shape)] = narrow
        return filled

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a tensor, filled up."""
        shape = self._shapes[name]
        count = self._narrow[name][0]
        first, last = min(start, count), min(stop, count)
        narrow = self._source.rows(name, first, last, device=device, dtype=dtype)
        if (stop - start, *shape[1:]) == tuple(narrow.shape):
            return narrow
        filled = narrow.new_zeros(stop - start, *shape[1:])
        filled[tuple(slice(size) for size in narrow.shape)] = narrow
        return filled
