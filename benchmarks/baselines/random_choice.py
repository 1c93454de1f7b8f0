"""Random: a seeded draw, the same share of every site. Every other method should be better."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.baselines.selection import keep_uniformly
from benchmarks.baselines.sites import Site


def prune(sites: Sequence[Site], sparsity: float, seed: int) -> None:
    """Remove a random share of every site."""
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        scores = torch.rand(site.structures, generator=generator)
        site.remove_all_but(keep_uniformly(site, scores, sparsity))
