"""A model's tensors with FFN channels of zeros added: the same function in wider matrices."""

from __future__ import annotations

from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.tensors import expected_tensors


class PaddedSource(StoredSource):
    """Another source's tensors, padded with zeros behind their rows and columns.

    A channel without weights gives act(0) * 0 = 0 to a gated FFN's down projection, and its column
    there is zero as well.
    """

    def __init__(self, source: WeightSource, narrow: ModelConfig, config: ModelConfig) -> None:
        """`narrow` has the source's shapes, `config` the padded ones."""
        self._source = source
        self._narrow, self._shapes = expected_tensors(narrow), expected_tensors(config)

    def stored(self, name: str) -> Tensor:
        """A whole tensor, padded."""
        return _padded(self._source.tensor(name, dtype=None), self._shapes[name])

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, padded."""
        count = self._narrow[name][0]
        narrow = self._source.rows(name, min(start, count), min(stop, count), dtype=None)
        return _padded(narrow, (stop - start, *self._shapes[name][1:]))


def _padded(narrow: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor with zeros behind its rows and columns."""
    if tuple(narrow.shape) == shape:
        return narrow
    padded = narrow.new_zeros(shape)
    padded[tuple(slice(size) for size in narrow.shape)] = narrow
    return padded
