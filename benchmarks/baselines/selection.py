"""Scores to kept structures: the same share of every site, or the lowest scores of all sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.baselines.sites import Site

_SLACK = 1e-9  # Keeps 0.2 * 1536 * 30 from being rounded up by its last bit.


def uniform_quota(site: Site, sparsity: float) -> int:
    """Structures that a site loses under a uniform sparsity, never all.

    Where the share is no whole number the rest is spread evenly over the layers, so that the sum
    over all layers is right: of three KV groups a layer, 20 % is one in three layers of five.
    """
    each = sparsity * site.structures
    quota = math.ceil((site.layer + 1) * each - _SLACK) - math.ceil(site.layer * each - _SLACK)
    return min(quota, site.structures - 1)


def keep_highest(scores: Tensor, removed: int) -> Tensor:
    """Structures that stay, ascending, when the `removed` lowest scores go."""
    return scores.argsort(stable=True)[removed:].sort().values


def keep_uniformly(site: Site, scores: Tensor, sparsity: float) -> Tensor:
    """Structures of a site that stay when it loses its uniform share."""
    return keep_highest(scores, uniform_quota(site, sparsity))


def keep_globally(sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Structures of each site that stay when the lowest scores of all sites go.

    The lowest go until that share of all sites' weights is gone. A site's best structure stays.
    """
    weights = torch.cat([torch.full((site.structures,), site.parameters) for site in sites])
    guarded = [_guard_best(score) for score in scores]
    order = torch.cat(guarded).argsort(stable=True)
    gone_before = weights[order].cumsum(0) - weights[order]
    budget = math.ceil(sparsity * int(weights.sum()) - _SLACK)
    removed = torch.zeros(len(order), dtype=torch.bool)
    removed[order[gone_before < budget]] = True
    parts = torch.split(removed, [site.structures for site in sites])
    return [(~part).nonzero().flatten() for part in parts]


def _guard_best(scores: Tensor) -> Tensor:
    guarded = scores.double().clone()
    guarded[guarded.argmax()] = torch.inf
    return guarded
