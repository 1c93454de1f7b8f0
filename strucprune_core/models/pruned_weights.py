"""The pruned model's tensors, cut from the dense ones on demand: one tensor in memory at a time.

The files are written from the same object that gives the forward pass they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.structures import CoupledTensor, Site
from strucprune_core.models.tensors import tensor_name

# A gap of up to this many unwanted rows is read too: one request is cheaper than two.
GAP_ROWS = 64


@dataclass(frozen=True, slots=True)
class SiteSolution:
    """The result of pruning one site.

    Attributes:
        kept: Structures that stay, ascending, (k,) int64.
        weight: Their columns of the output matrix, (d x k * columns) float32.
        trained: Coupled tensors by role whose values were trained, not just cut, float32.
    """

    kept: Tensor
    weight: Tensor
    trained: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A tensor that shrinks: where its site is, and how it is coupled to it."""

    layer: int
    site: Site
    coupled: CoupledTensor


def cut_tensor(tensor: Tensor, coupled: CoupledTensor, kept: Tensor) -> Tensor:
    """The part of a coupled tensor that stays when the structures `kept` stay."""
    indices = torch.tensor(coupled.indices(kept.tolist()), device=tensor.device)
    return tensor.index_select(coupled.axis, indices)


def as_stored(weight: Tensor, site: Site) -> Tensor:
    """A site's output matrix (d x columns), transposed if its checkpoint stores it so."""
    return weight.T.contiguous() if site.output.axis == 0 else weight


def cut_tensors(
    weights: Mapping[str, Tensor], solutions: list[tuple[Site, SiteSolution]]
) -> dict[str, Tensor]:
    """The tensors of a layer, by role, that are others once the given sites are pruned."""
    cut: dict[str, Tensor] = {}
    for site, solution in solutions:
        for coupled in site.coupled:
            dense = cut[coupled.role] if coupled.role in cut else weights[coupled.role]
            cut[coupled.role] = solution.trained.get(
                coupled.role, cut_tensor(dense, coupled, solution.kept)
            )
        dense = weights[site.output.role]
        cut[site.output.role] = as_stored(solution.weight.to(dense.device, dense.dtype), site)
    return cut


def prune_layer(
    weights: Mapping[str, Tensor], solutions: list[tuple[Site, SiteSolution]]
) -> dict[str, Tensor]:
    """A layer's tensors by role, with the given sites pruned."""
    return {**weights, **cut_tensors(weights, solutions)}


class PrunedSource(StoredSource):
    """Another source's tensors with structures cut out."""

    def __init__(
        self,
        dense: WeightSource,
        config: ModelConfig,
        sites: list[tuple[int, Site]],
        solution: Callable[[int, Site], SiteSolution],
        replaced: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        """`solution` gives the solution of a layer's site; it is called for each tensor cut.

        `replaced` gives tensors outside the sites that replace dense ones, by name and as they will
        be stored.
        """
        self._dense = dense
        self._solution = solution
        self._replaced = replaced or {}
        self._cuts = {
            tensor_name(config, layer, coupled.role): _Cut(layer, site, coupled)
            for layer, site in sites
            for coupled in (*site.coupled, site.output)
        }

    def tensor(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A tensor of the pruned model; with `dtype` None exactly as it will be stored."""
        if self._is_dense(name):  # The reader converts a piece at a time.
            return self._dense.tensor(name, device=device, dtype=dtype)
        return super().tensor(name, device=device, dtype=dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a tensor of the pruned model. Only the dense rows that they need are read."""
        if self._is_dense(name):
            return self._dense.rows(name, start, stop, device=device, dtype=dtype)
        return super().rows(name, start, stop, device=device, dtype=dtype)

    def _is_dense(self, name: str) -> bool:
        return name not in self._replaced and name not in self._cuts

    def stored(self, name: str) -> Tensor:
        """A whole tensor that differs from the dense one."""
        if name in self._replaced:
            return self._replaced[name]()
        cut = self._cuts[name]
        solution = self._solution(cut.layer, cut.site)
        stored = self._dense.tensor(name, dtype=None)
        if cut.coupled is cut.site.output:
            return as_stored(solution.weight, cut.site).to(stored.dtype)
        if cut.coupled.role in solution.trained:
            return solution.trained[cut.coupled.role].to(stored.dtype)
        return cut_tensor(stored, cut.coupled, solution.kept)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor that differs from the dense one."""
        if name in self._replaced:
            return self._replaced[name]()[start:stop]
        cut = self._cuts[name]
        solution = self._solution(cut.layer, cut.site)
        if cut.coupled is cut.site.output:
            weight = solution.weight
            across = cut.coupled.axis == 0
            return self._as_dense(name, weight[:, start:stop].T if across else weight[start:stop])
        if cut.coupled.role in solution.trained:
            return self._as_dense(name, solution.trained[cut.coupled.role][start:stop])
        kept = cut.coupled.indices(solution.kept.tolist())
        if cut.coupled.axis == 1:
            return self._dense.rows(name, start, stop, dtype=None)[:, torch.tensor(kept)]
        return self._gather(name, kept[start:stop])

    def _as_dense(self, name: str, values: Tensor) -> Tensor:
        """Values in the dtype of the dense tensor."""
        return values.to(self._dense.rows(name, 0, 0, dtype=None).dtype)

    def _gather(self, name: str, rows: list[int]) -> Tensor:
        """Some rows of a dense tensor, read in stretches with few unwanted rows."""
        parts = []
        for stretch in _stretches(rows):
            first = stretch[0]
            read = self._dense.rows(name, first, stretch[-1] + 1, dtype=None)
            parts.append(read[torch.tensor(stretch) - first])
            del read
        if not parts:
            return self._dense.rows(name, 0, 0, dtype=None)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stretches(rows: list[int]) -> Iterator[list[int]]:
    """Ascending rows, split where more than `GAP_ROWS` lie between two."""
    stretch: list[int] = []
    for row in rows:
        if stretch and not 0 < row - stretch[-1] <= GAP_ROWS:
            yield stretch
            stretch = []
        stretch.append(row)
    if stretch:
        yield stretch
