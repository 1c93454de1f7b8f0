"""A layer that is never in memory whole: its matrices are read some rows at a time.

With W (out x in) read in panels of rows, y = x W^T is computed panel by panel into its columns. A
matrix stored transposed (in x out, as GPT-2's) gives sums instead: y += x_P W_P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from strucprune_core.models.tensors import Shapes

Read = Callable[[str, tuple[int, int] | None], Tensor]
"""Reads a tensor by role, whole or rows [start, stop) of it, on the device."""

LayerWeights = Mapping[str, Tensor]
"""Tensors of one layer by role: all in memory, or a `StreamedLayer`."""


class StreamedLayer(Mapping[str, Tensor]):
    """One layer's tensors by role, read whenever they are used.

    Args:
        shapes: Their shapes.
        read: Reads one of them, or some of its rows.
        panel_rows: Rows of a matrix to be resident at a time.
    """

    def __init__(self, shapes: Shapes, read: Read, panel_rows: int) -> None:
        self._shapes, self._read, self.panel_rows = shapes, read, panel_rows

    def __getitem__(self, role: str) -> Tensor:
        if role not in self._shapes:
            raise KeyError(role)
        return self._read(role, None)

    def __contains__(self, role: object) -> bool:
        return role in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, role: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._shapes[role]

    def rows(self, role: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a matrix."""
        return self._read(role, (start, stop))


def linear(
    x: Tensor,
    weights: LayerWeights,
    name: str,
    *,
    transposed: bool = False,
    outputs: range | None = None,
) -> Tensor:
    """X W^T + bias with the weights `name`.weight (and `name`.bias), (..., outputs).

    Computed in the dtype of x, summed in float32: weights of another dtype are converted.

    Args:
        x: (..., in), float32 or bfloat16.
        weights: The layer's tensors.
        name: Which projection.
        transposed: Whether the matrix is stored (in x out).
        outputs: Which outputs to compute; all if None. Only for a matrix stored (out x in).
    """
    role, part = f"{name}.weight", slice(None)
    if outputs is not None:
        part = slice(outputs.start, outputs.stop)
    bias = weights[f"{name}.bias"][part].to(x.dtype) if f"{name}.bias" in weights else None
    if not isinstance(weights, StreamedLayer):
        weight = weights[role].T if transposed else weights[role][part]
        return functional.linear(x, weight.to(x.dtype), bias)
    rows, columns = weights.shape(role)
    wanted = outputs or range(columns if transposed else rows)
    flat = x.reshape(-1, x.shape[-1])
    if transposed:
        sums = torch.zeros(len(flat), len(wanted), device=x.device)
        for start, stop in _panels(range(rows), weights.panel_rows):
            _add_product(sums, flat[:, start:stop], weights.rows(role, start, stop))
        result = sums.to(x.dtype)
        del sums
    else:
        result = flat.new_empty(len(flat), len(wanted))
        for start, stop in _panels(wanted, weights.panel_rows):
            place = result[:, start - wanted.start : stop - wanted.start]
            torch.mm(flat, weights.rows(role, start, stop).T.to(x.dtype), out=place)
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], len(wanted))


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right to float32 sums."""
    if left.dtype == sums.dtype:
        sums.addmm_(left, right.to(left.dtype))
    else:
        sums.add_(left @ right.to(left.dtype))


def output_panels(weights: LayerWeights, outputs: int) -> Iterator[range]:
    """Ranges of a projection's outputs to compute at a time: all at once if they are resident."""
    step = weights.panel_rows if isinstance(weights, StreamedLayer) else outputs
    for start, stop in _panels(range(outputs), step):
        yield range(start, stop)


def _panels(rows: range, step: int) -> Iterator[tuple[int, int]]:
    for start in range(rows.start, rows.stop, step):
        yield start, min(start + step, rows.stop)
