"""The base of sources whose tensors are computed, not read from a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class StoredSource(ABC):
    """A `WeightSource` that computes tensors in a file's dtype, and then converts them."""

    @abstractmethod
    def stored(self, name: str) -> Tensor:
        """A whole tensor in its file's dtype, on any device."""

    @abstractmethod
    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of it."""

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A whole tensor; with `dtype` None exactly as it will be stored."""
        values = self.stored(name)
        return values.to(device).to(dtype or values.dtype)  # It crosses as it is stored.

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
        values = self.stored_rows(name, start, stop)
        return values.to(device).to(dtype or values.dtype)  # It crosses as it is stored.
