"""FLAP: removes structures whose output hardly fluctuates; their mean output becomes a bias.

    s_j = var(X_j) ||W_j||_2^2                               (WIFV; squared for attention)
    z_j = (s_j - mean s) / std s     within a site,          then one ranking over all sites
    b   = sum over removed j of mean(X_j) W_j                added to the consumer's output

An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
arXiv:2312.11983, with the structure search "AL-AM" of its code: a KV group's
z is the mean of its columns'. Statistics come from the dense model. Its code estimates the variance
with a running mean over sequences; here it is the variance over all calibration tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.baselines.selection import keep_globally
from benchmarks.baselines.sites import Site


def standardised(weight: Tensor, variance: Tensor, *, squared: bool) -> Tensor:
    """z_j of each column.

    Args:
        weight: W, (d x m).
        variance: var(X_j), (m,).
        squared: Whether the score is squared first, as its authors do for attention.
    """
    fluctuation = variance * weight.double().square().sum(0)
    if squared:
        fluctuation = fluctuation.square()
    return (fluctuation - fluctuation.mean()) / fluctuation.std()


def compensation(weight: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """b, (d,): what the removed columns add on average.

    Args:
        weight: W, (d x m).
        mean: mean(X_j), (m,).
        kept: Columns that stay, (k,) int64.
    """
    missing = mean.clone()
    missing[kept] = 0.0
    return weight.double() @ missing


def structure_scores(site: Site, variance: Tensor) -> Tensor:
    """The mean z of each structure's columns."""
    weight = site.consumer.weight.detach()
    columns = standardised(weight, variance, squared=site.kind == "attention")
    return site.per_structure(columns) * site.structures / len(columns)


@torch.no_grad()
def prune(sites: Sequence[Site], moments: Sequence[dict[str, Tensor]], sparsity: float) -> None:
    """Remove the lowest scores of all sites and compensate."""
    found = [
        structure_scores(site, kind["variance"]) for site, kind in zip(sites, moments, strict=True)
    ]
    kept_everywhere = keep_globally(sites, found, sparsity)
    for site, moment, kept in zip(sites, moments, kept_everywhere, strict=True):
        bias = compensation(site.consumer.weight.detach(), moment["mean"], site.columns(kept))
        site.remove_all_but(kept, bias=bias)
