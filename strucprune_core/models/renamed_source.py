"""A source whose tensors have other names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from strucprune_core.models.streaming import WeightSource


class RenamedSource:
    """Another source's tensors under new names.

    Args:
        source: The tensors.
        names: Old names by new ones.
    """

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A whole tensor."""
        return self._source.tensor(self._names[name], device=device, dtype=dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows [start, stop) of a tensor's first dimension."""
        return self._source.rows(self._names[name], start, stop, device=device, dtype=dtype)
