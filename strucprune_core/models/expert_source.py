"""The tensors of a model without some of its experts, cut from the dense ones on demand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import Kept, Origin, origins
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource


class ExpertSource(StoredSource):
    """Another source's tensors with experts cut out.

    Args:
        dense: The tensors.
        config: The dense model.
        kept: The experts that stay.
        repaired: Gives a tensor that was repaired, in its file's dtype; None for any other.
    """

    def __init__(
        self,
        dense: WeightSource,
        config: ModelConfig,
        kept: Kept,
        repaired: Callable[[str], Tensor | None] = lambda name: None,
    ) -> None:
        self._dense, self._repaired = dense, repaired
        self._origins = origins(config, kept)

    def stored(self, name: str) -> Tensor:
        """A whole tensor, as the files store it."""
        repaired = self._repaired(name)
        if repaired is not None:
            return repaired
        origin = self._origins.get(name, Origin(name))
        tensor = self._dense.tensor(origin.name, dtype=None)
        if origin.axis is None:
            return tensor
        return tensor.index_select(origin.axis, torch.tensor(origin.indices))

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor: of the dense one only those that they come from are read."""
        repaired = self._repaired(name)
        if repaired is not None:
            return repaired[start:stop]
        origin = self._origins.get(name, Origin(name))
        if origin.axis is None:
            return self._dense.rows(origin.name, start, stop, dtype=None)
        if origin.axis > 0:
            rows = self._dense.rows(origin.name, start, stop, dtype=None)
            return rows.index_select(origin.axis, torch.tensor(origin.indices))
        parts = [
            self._dense.rows(origin.name, index, index + 1, dtype=None)
            for index in origin.indices[start:stop]
        ]
        return torch.cat(parts) if parts else self._dense.rows(origin.name, 0, 0, dtype=None)
