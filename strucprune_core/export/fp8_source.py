"""A model's tensors in FP8, quantised by compressed-tensors' own code some rows at a time.

Of a row w of a matrix, in float32:

    factor = max |w_i| / 448          448: the largest number of float8_e4m3fn
    q_i    = w_i / factor             clamped to +-448 and rounded to float8_e4m3fn

and w_i is read as q_i * factor. A row of zeros has a tiny factor. Rows do not depend on each other,
so pieces change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from strucprune_core.export.fp8 import FACTORS, SCHEME, matrix_of
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource

# Weights that are converted at a time: bounds the memory beside the values and the result.
_CHUNK_ELEMENTS = 2**20


class Fp8Source(StoredSource):
    """Another source's tensors as the export holds them: matrices in FP8, and their factors."""

    def __init__(self, source: WeightSource, matrices: Mapping[str, tuple[int, ...]]) -> None:
        """`matrices`: names and shapes of those that are quantised."""
        self._source, self._matrices = source, matrices

    def stored(self, name: str) -> Tensor:
        """A whole tensor, quantised, or the factors of one."""
        matrix = matrix_of(name, self._matrices)
        if matrix not in self._matrices:
            return self._source.tensor(name, dtype=None)
        return self.stored_rows(name, 0, self._matrices[matrix][0])

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of it."""
        matrix = matrix_of(name, self._matrices)
        if matrix not in self._matrices:
            return self._source.rows(name, start, stop, dtype=None)
        pieces = self._pieces(matrix, start, stop)
        if name != matrix:
            return torch.cat([factors for _, factors in pieces])
        return torch.cat([quantised for quantised, _ in pieces])

    def _pieces(self, matrix: str, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        step = max(1, _CHUNK_ELEMENTS // self._matrices[matrix][1])
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield quantise(self._source.rows(matrix, first, last, dtype=None))


class Fp8Reading(StoredSource):
    """The tensors of an `Fp8Source` as they are read again, in float32."""

    def __init__(self, source: WeightSource, matrices: Mapping[str, tuple[int, ...]]) -> None:
        """As `Fp8Source`."""
        self._source, self._matrices = source, matrices
        self._quantised = Fp8Source(source, matrices)

    def stored(self, name: str) -> Tensor:
        """A whole tensor."""
        if name not in self._matrices:
            return self._source.tensor(name, dtype=torch.float32)
        return self.stored_rows(name, 0, self._matrices[name][0])

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of it."""
        if name not in self._matrices:
            return self._source.rows(name, start, stop, dtype=torch.float32)
        quantised = self._quantised.stored_rows(name, start, stop)
        return dequantise(quantised, self._quantised.stored_rows(name + FACTORS, start, stop))


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (rows x columns) in float8_e4m3fn, and their factors (rows x 1) in float32."""
    # An optional dependency: only here.
    from compressed_tensors.compressors import FloatQuantizationCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    wide, scheme = values.float(), _scheme()
    low, high = torch.aminmax(wide, dim=1, keepdim=True)
    factors, _ = calculate_qparams(low, high, scheme.weights)
    state = {"weight": wide, "weight_scale": factors}
    stored = FloatQuantizationCompressor.compress(state, scheme)
    return stored["weight"], stored["weight_scale"]


def dequantise(quantised: Tensor, factors: Tensor) -> Tensor:
    """What `quantise` has stored, as the package reads it: (rows x columns) float32."""
    from compressed_tensors.compressors import FloatQuantizationCompressor

    state = {"weight": quantised, "weight_scale": factors}
    values: Tensor = FloatQuantizationCompressor.decompress(state, _scheme())["weight"]
    return values


@cache
def _scheme() -> Any:
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme.model_validate(SCHEME)
