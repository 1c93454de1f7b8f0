"""Wanda-sp: weight times activation norm, over whole structures; the same share of every site.

    s_j = mean_i |W_ij| ||X_j||_2

Wanda: Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models",
arXiv:2306.11695. Its structured form, with the mean over the output rows (so the norm of W_j is
l1), is that of the FLAP paper (An et al. 2024, arXiv:2312.11983, baselines). As in both papers'
code, a layer's inputs come from the layers pruned before it. So this method has no statistics that
a second sparsity could share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.baselines.selection import keep_uniformly
from benchmarks.baselines.sites import Scope, layer_sites
from benchmarks.baselines.statistics import Moments, embedded, run_layer


def scores(weight: Tensor, sum_squares: Tensor) -> Tensor:
    """s_j of each column.

    Args:
        weight: W, (d x m).
        sum_squares: ||X_j||_2^2, (m,).
    """
    return weight.abs().mean(0) * sum_squares.sqrt()


@torch.no_grad()
def prune(model: Any, scope: Scope, windows: NDArray[np.int32], sparsity: float) -> None:
    """Prune layer after layer, each on the outputs of the pruned ones."""
    hidden = embedded(model, windows)
    for layer in range(len(model.model.layers)):
        sites = layer_sites(model, layer, scope)
        moments = {site.consumer: Moments(site.consumer.in_features) for site in sites}
        run_layer(model, layer, hidden, moments)
        for site in sites:
            squares = moments[site.consumer].tensors()["sum_squares"]
            found = site.per_structure(scores(site.consumer.weight, squares))
            site.remove_all_but(keep_uniformly(site, found, sparsity))
        hidden = run_layer(model, layer, hidden, {})
