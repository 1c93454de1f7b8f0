"""The pruned model's tensors, cut from the dense ones on demand: one tensor in memory at a time.

The same object feeds the files that are written and the forward pass that they are checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.structures import CoupledTensor, Site
from strucprune_core.models.tensors import tensor_name

# Rows that are read in vain rather than with a request of their own.
GAP_ROWS = 64


@dataclass(frozen=True, slots=True)
class SiteSolution:
    """What pruning one site gave.

    Attributes:
        kept: Structures that stay, ascending, (k,) int64.
        weight: Their columns of the output matrix, (d x k * columns) float32.
        trained: Coupled tensors by role that are more than a cut of the dense ones, float32.
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
    """What stays of a coupled tensor when the structures `kept` stay."""
    indices = torch.tensor(coupled.indices(kept.tolist()), device=tensor.device)
    return tensor.index_select(coupled.axis, indices)


def as_stored(weight: Tensor, site: Site) -> Tensor:
    """A site's output matrix (d x columns) the way round that its checkpoint stores it."""
    return weight.T.contiguous() if site.output.axis == 0 else weight


def prune_layer(
    weights: Mapping[str, Tensor], solutions: list[tuple[Site, SiteSolution]]
) -> dict[str, Tensor]:
    """A layer's tensors by role, with the given sites pruned."""
    pruned = dict(weights)
    for site, solution in solutions:
        for coupled in site.coupled:
            pruned[coupled.role] = solution.trained.get(
                coupled.role, cut_tensor(pruned[coupled.role], coupled, solution.kept)
            )
        device = weights[site.output.role].device
        pruned[site.output.role] = as_stored(solution.weight.to(device), site)
    return pruned


class PrunedSource:
    """A `WeightSource` that cuts structures out of another's tensors."""

    def __init__(
        self,
        dense: WeightSource,
        config: ModelConfig,
        sites: list[tuple[int, Site]],
        solution: Callable[[int, Site], SiteSolution],
        replaced: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        """`solution` gives the solution of a layer's site; it is called for each tensor cut.

        `replaced` gives, by name and as they will be stored, tensors outside the sites that are not
        the dense ones any more.
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
        if name in self._replaced:
            left = self._replaced[name]()
            return left.to(device=device, dtype=dtype or left.dtype)
        if name not in self._cuts:
            return self._dense.tensor(name, device=device, dtype=dtype)
        cut = self._cuts[name]
        solution = self._solution(cut.layer, cut.site)
        stored = self._dense.tensor(name, dtype=None)
        if cut.coupled is cut.site.output:
            left = as_stored(solution.weight, cut.site).to(stored.dtype)
        elif cut.coupled.role in solution.trained:
            left = solution.trained[cut.coupled.role].to(stored.dtype)
        else:
            left = cut_tensor(stored, cut.coupled, solution.kept)
        return left.to(device=device, dtype=dtype or left.dtype)

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a tensor of the pruned model; of the dense one no more is read than they need."""
        if name in self._replaced:
            left = self._replaced[name]()[start:stop]
            return left.to(device=device, dtype=dtype or left.dtype)
        if name not in self._cuts:
            return self._dense.rows(name, start, stop, device=device, dtype=dtype)
        cut = self._cuts[name]
        solution = self._solution(cut.layer, cut.site)
        if cut.coupled is cut.site.output:
            stored = self._dense.rows(name, 0, 0, dtype=None).dtype
            across = cut.coupled.axis == 0
            part = solution.weight[:, start:stop].T if across else solution.weight[start:stop]
            return part.to(stored).to(device=device, dtype=dtype or stored)
        if cut.coupled.role in solution.trained:
            stored = self._dense.rows(name, 0, 0, dtype=None).dtype
            part = solution.trained[cut.coupled.role][start:stop].to(stored)
            return part.to(device=device, dtype=dtype or stored)
        kept = cut.coupled.indices(solution.kept.tolist())
        if cut.coupled.axis == 1:
            part = self._dense.rows(name, start, stop, dtype=None)
            return part[:, torch.tensor(kept)].to(device=device, dtype=dtype or part.dtype)
        return self._gather(name, kept[start:stop], device, dtype)

    def _gather(
        self, name: str, rows: list[int], device: str | torch.device, dtype: torch.dtype | None
    ) -> Tensor:
        """Some rows of a dense tensor, in stretches that hold few others."""
        parts = []
        for stretch in _stretches(rows):
            first = stretch[0]
            read = self._dense.rows(name, first, stretch[-1] + 1, device=device, dtype=dtype)
            parts.append(read[torch.tensor(stretch, device=read.device) - first])
            del read
        if not parts:
            return self._dense.rows(name, 0, 0, device=device, dtype=dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stretches(rows: list[int]) -> Iterator[list[int]]:
    """Ascending runs of rows between which at most `GAP_ROWS` are read in vain."""
    stretch: list[int] = []
    for row in rows:
        if stretch and not 0 < row - stretch[-1] <= GAP_ROWS:
            yield stretch
            stretch = []
        stretch.append(row)
    if stretch:
        yield stretch
