"""Magnitude-sp: removes structures with the smallest weights, the same share of every site.

    s_j = ||W_j||_2

over the consumer's columns, a KV group's columns summed: the structured magnitude pruning that the
FLAP paper compares with (An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large
Language Models", arXiv:2312.11983; after Han et al. 2015). No data is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from benchmarks.baselines.selection import keep_uniformly
from benchmarks.baselines.sites import Site


def scores(weight: Tensor) -> Tensor:
    """s_j of each column of the consumer's weight (d x m)."""
    return weight.square().sum(0).sqrt()


def prune(sites: Sequence[Site], sparsity: float) -> None:
    """Remove the same share of every site."""
    for site in sites:
        found = site.per_structure(scores(site.consumer.weight.detach()))
        site.remove_all_but(keep_uniformly(site, found, sparsity))
