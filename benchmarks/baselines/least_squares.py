"""Least squares after another method's choice of structures.

    W_K = (W G_:K + g W_K) (G_KK + g I)^-1

with StrucPrune's own solver, damping rule and token-weighted Gram matrix, so that a row differs
from StrucPrune's in the choice alone. Orders within a site, the same share of every site: Wanda's
score on the dense model's inputs, or OBS (Hassibi & Stork 1993), which is StrucPrune without its
allocation between layers. ZipLM (Kurtic et al. 2023) and OSSCAR (Meng et al. 2024) are of this
kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from benchmarks.baselines import wanda_sp
from benchmarks.baselines.selection import keep_uniformly, uniform_quota
from benchmarks.baselines.sites import Site
from strucprune_core.method.layer.damage_curve import damage_curve
from strucprune_core.method.layer.ridge import default_damping, ridge

Order = Literal["wanda", "obs"]
Statistics = Callable[[int], dict[str, Tensor]]  # `gram` and `sum_squares` of the i-th site.


@torch.no_grad()
def repair(
    sites: Sequence[Site], kept: Sequence[Tensor], statistics: Statistics, tokens: int
) -> None:
    """Remove all but the kept structures of each site and re-solve the consumer.

    Args:
        sites: All sites.
        kept: Structures that stay in each.
        statistics: Of each site.
        tokens: Calibration tokens, which set the damping.
    """
    for index, (site, stays) in enumerate(zip(sites, kept, strict=True)):
        dense, gram = site.consumer.weight.detach(), statistics(index)["gram"]
        solution = ridge(gram, dense, site.columns(stays), default_damping(tokens))
        site.remove_all_but(stays, weight=solution.weight)


@torch.no_grad()
def choose(site: Site, found: dict[str, Tensor], order: Order, sparsity: float) -> Tensor:
    """Structures of a site that stay; `obs` is for FFN channels only."""
    weight = site.consumer.weight.detach()
    if order == "obs":
        removed = damage_curve(found["gram"], weight).order[: uniform_quota(site, sparsity)]
        stays = torch.ones(site.structures, dtype=torch.bool)
        stays[removed] = False
        return stays.nonzero().flatten()
    columns = wanda_sp.scores(weight, found["sum_squares"])
    return keep_uniformly(site, site.per_structure(columns), sparsity)


def prune(
    sites: Sequence[Site], statistics: Statistics, order: Order, sparsity: float, tokens: int
) -> None:
    """Remove the same share of every site, and repair."""
    kept = [choose(site, statistics(i), order, sparsity) for i, site in enumerate(sites)]
    repair(sites, kept, statistics, tokens)
