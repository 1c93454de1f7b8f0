"""A source whose tensors have other names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource


class RenamedSource(StoredSource):
    """Another source's tensors under new names."""

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        """`names`: old names by new ones."""
        self._source, self._names = source, names

    def stored(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._source.tensor(self._names[name], dtype=None)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of it."""
        return self._source.rows(self._names[name], start, stop, dtype=None)
