"""A source of weights that counts what is read."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from strucprune_core.models.streaming import WeightSource


class CountedSource:
    """Passes reads on.

    Args:
        source: Where tensors are read.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.counts: Counter[str] = Counter()

    def tensor(
        self, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """A whole tensor."""
        self.counts[name] += 1
        return self._source.tensor(name, device=device, dtype=dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Some rows of one."""
        self.counts[name] += 1
        return self._source.rows(name, start, stop, device=device, dtype=dtype)
