"""Taylor: a global ranking by how much a structure's removal changes the loss to first order.

    vector    s_j = sum over samples s of | sum over w in j of w dL_s/dw |
    element   s_j = sum over w in j of | w dL/dw |,      L the mean over the samples

w runs over all weights that go with structure j: its rows of gate and up (or q, k, v) and its
columns of down (or o). Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning",
arXiv:1906.10771, takes the first-order term of a whole group per sample: `vector`. LLM-Pruner (Ma
et al. 2023, arXiv:2305.11627) takes it per weight, on the batch's gradient, summed over the group:
`element` (its default, "param_first"; its own "vectorize" takes absolute values per matrix). A
sample is a calibration window. Scores are divided by the structure's number of weights, which
matters only where KV groups and FFN channels meet. LLM-Pruner also spares its first and last layers
by hand; here the ranking decides. The model and its gradients are held whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.baselines.selection import keep_globally
from benchmarks.baselines.sites import Site

Form = Literal["vector", "element"]


def scores(
    model: Any, sites: Sequence[Site], windows: NDArray[np.int32], form: Form
) -> list[Tensor]:
    """s_j of each structure of each site, by one backward pass per window."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for site in sites:
        for linear in site.linears:
            linear.weight.requires_grad_(True)
    totals = [torch.zeros(site.structures, dtype=torch.float64) for site in sites]
    for window in windows:
        tokens = torch.from_numpy(window).long()[None]
        loss = model(tokens, labels=tokens, use_cache=False).loss
        (loss / len(windows)).backward()
        if form == "vector":
            for site, total in zip(sites, totals, strict=True):
                total += first_order(site, element=False).abs()
            model.zero_grad()
    if form == "element":
        totals = [first_order(site, element=True) for site in sites]
    model.zero_grad()
    return [total / site.parameters for site, total in zip(sites, totals, strict=True)]


@torch.no_grad()
def first_order(site: Site, *, element: bool) -> Tensor:
    """Sum of w dL/dw over each structure's weights, of absolute values if `element`."""
    total = torch.zeros(site.structures, dtype=torch.float64)
    for linear in site.producers:
        total += site.per_structure(_products(linear, element=element).sum(1))
    return total + site.per_structure(_products(site.consumer, element=element).sum(0))


def _products(linear: nn.Linear, *, element: bool) -> Tensor:
    assert linear.weight.grad is not None
    product = linear.weight * linear.weight.grad
    return product.abs() if element else product


def prune(sites: Sequence[Site], found: Sequence[Tensor], sparsity: float) -> None:
    """Remove the lowest scores of all sites."""
    for site, kept in zip(sites, keep_globally(sites, found, sparsity), strict=True):
        site.remove_all_but(kept)
