"""The pruned model's tensors, cut from the dense ones on demand: one tensor in memory at a time.

The same object feeds the files that are written and the forward pass that they are checked against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.models.adapter import Adapter, CoupledTensor
from strucprune_core.models.streaming import WeightSource


@dataclass(frozen=True, slots=True)
class LayerSolution:
    """What pruning one layer gave.

    Attributes:
        kept: Channels that stay, ascending, (k,) int64.
        weight: Their columns of the down projection, (d x k) float32.
    """

    kept: Tensor
    weight: Tensor


class PrunedSource:
    """A `WeightSource` that cuts channels out of another's tensors."""

    def __init__(
        self, dense: WeightSource, adapter: Adapter, solution: Callable[[int], LayerSolution]
    ) -> None:
        """`solution` gives a layer's solution; it is called for each tensor that is cut."""
        self._dense = dense
        self._down = adapter.down_projection
        self._solution = solution
        self._cut: dict[str, tuple[int, CoupledTensor]] = {
            adapter.tensor_name(layer, coupled.role): (layer, coupled)
            for layer in range(adapter.config.layers)
            for coupled in adapter.ffn_channel
        }

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A tensor of the pruned model; with `dtype` None exactly as it will be stored."""
        if name not in self._cut:
            return self._dense.tensor(name, device=device, dtype=dtype)
        layer, coupled = self._cut[name]
        solution = self._solution(layer)
        stored = self._dense.tensor(name, dtype=None)
        if coupled.role == self._down:
            cut = solution.weight.to(stored.dtype)
        else:
            cut = stored.index_select(coupled.axis, solution.kept)
        return cut.to(device=device, dtype=dtype or cut.dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a tensor that pruning leaves alone."""
        return self._dense.rows(name, start, stop, device=device, dtype=dtype)

    def shape(self, name: str, dense_shape: tuple[int, ...], widths: list[int]) -> tuple[int, ...]:
        """Shape of a tensor after pruning to the given widths per layer."""
        if name not in self._cut:
            return dense_shape
        layer, coupled = self._cut[name]
        return (
            *dense_shape[: coupled.axis],
            widths[layer],
            *dense_shape[coupled.axis + 1 :],
        )
