"""A site of the dense model, with what finished units have measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.method.layer.ridge import default_damping, ridge_into
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, spans
from strucprune_core.method.site_statistics import SiteStatistics
from strucprune_core.models.pruned_weights import SiteSolution
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import tensor_name
from strucprune_core.run.artifacts import Capture, Curve
from strucprune_core.run.context import Job

Solved = list[tuple[Site, SiteSolution]]
"""The pruned sites of a layer, on the device."""


class Repair(NamedTuple):
    """A site repaired by ridge regression.

    Attributes:
        solution: What is left of it. The weight is on the device if its rows fit a panel, else in a
            scratch file mapped to memory.
        damping: Ridge used, relative to the Gram's mean diagonal.
        damping_retries: Times it was raised to factorise.
        dtype: What it was computed in.
    """

    solution: SiteSolution
    damping: float
    damping_retries: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class MeasuredSite:
    """A site of a job; what is read of it must be finished."""

    job: Job
    layer: int
    site: Site

    @property
    def statistics(self) -> SiteStatistics:
        """What is known of it beside its Gram matrix."""
        return self.job.units.values(Capture(self.layer)).sites[self.site.name]

    @property
    def damping(self) -> float:
        """Ridge of its repair, relative to its Gram's mean diagonal."""
        return self.job.spec.pruning.damping or default_damping(self.statistics.tokens)

    def gram(self) -> Matrix:
        """Its Gram matrix, (m x m) float32."""
        return self.job.units.matrix(Capture(self.layer).grams, self.site.name)

    def holdout_matrix(self) -> Matrix:
        """Its inputs on held-out tokens, weighted, (tokens x m) float32."""
        return self.job.units.matrix(Capture(self.layer).holdout, self.site.name)

    def holdout(self) -> Tensor:
        """The same on the device."""
        return self.job.units.tensor(Capture(self.layer).holdout, self.site.name)

    def output_matrix(self) -> Matrix:
        """Its dense output matrix, (d x m) float32: on the device if it fits, else in scratch."""
        job, name = self.job, tensor_name(self.job.config, self.layer, self.site.output.role)
        shape = job.reader.info(name).shape
        return matrix_of(job, job.reader, name, shape, turned=self.site.output.axis == 0)

    def damage(self) -> NDArray[np.float64]:
        """Damage of each removal, in order."""
        file = Curve(self.layer).curves
        damage: NDArray[np.float64] = (
            self.job.units.tensor(file, damage_name(self.site)).cpu().numpy()
        )
        return damage

    def kept_at(self, width: int) -> Tensor:
        """The structures that stay at a width by the curve alone, ascending, on the host."""
        order = self.job.units.tensor(Curve(self.layer).curves, order_name(self.site)).cpu()
        return order[len(order) - width :].sort().values

    def columns(self, kept: Tensor) -> Tensor:
        """The columns of the output matrix that belong to structures, on the device."""
        return torch.tensor(self.site.output.indices(kept.tolist()), device=self.job.device)

    def repair(self, kept: Tensor) -> Repair:
        """Solve the columns of the structures `kept` again."""
        columns, dense = self.columns(kept), self.output_matrix()
        weight = self.job.room.matrix(dense.shape[0], len(columns), torch.float32)
        went = ridge_into(self.gram(), dense, columns, self.damping, weight, self.job.room)
        solution = SiteSolution(kept, weight.tensor)
        return Repair(solution, went.damping, went.retries, went.dtype)


def count_solved(job: Job, solved: Solved) -> None:
    """Count weights that leave the device; those whose rows fit no panel are in scratch."""
    weights = [each.weight for _, each in solved if job.panels.fits(each.weight.shape[1])]
    job.transfers.count(to_host=sum(weight.nbytes for weight in weights))


def matrix_of(
    job: Job, source: WeightSource, name: str, shape: tuple[int, ...], *, turned: bool
) -> Matrix:
    """A stored matrix in float32: on the device if its rows fit a panel, else in scratch.

    Args:
        job: The job.
        source: Where it is read from.
        name: Its name.
        shape: As it is stored.
        turned: Whether it is stored (in x out); it is returned (out x in).
    """
    stored_rows, stored_columns = shape
    rows, columns = (stored_columns, stored_rows) if turned else (stored_rows, stored_columns)
    if job.panels.fits(columns):
        stored = source.tensor(name, device=job.device, dtype=torch.float32)
        job.transfers.count(to_device=stored.numel() * job.stored_bytes)
        return DeviceMatrix(stored.T if turned else stored)
    matrix = job.room.matrix(rows, columns, torch.float32)
    for span in spans(stored_rows, job.panels.panel):
        part = source.rows(name, span.start, span.stop, dtype=torch.float32)
        if turned:
            matrix.tensor[:, span] = part.T
        else:
            matrix.tensor[span] = part
        job.safe_point()
    return matrix


def order_name(site: Site) -> str:
    """The tensor of a site's structures, first to go first, (structures,) int64."""
    return f"{site.name}.order"


def damage_name(site: Site) -> str:
    """The tensor of the damage of each removal, (structures,) float64."""
    return f"{site.name}.damage"
