"""What solver tests compare with: quadratic problems solved directly, one support at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.layer.damage_curve import HESSIAN_DAMPING


def random_gram(channels: int, seed: int, tokens: int | None = None) -> Tensor:
    """A Gram matrix of correlated activations, (f x f) float64."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=draw, dtype=torch.float64)
    rows = tokens or 4 * channels
    activations = torch.randn(rows, channels, generator=draw, dtype=torch.float64) @ mixing
    return activations.T @ activations / rows


def random_weight(rows: int, channels: int, seed: int) -> Tensor:
    """W, (d x f) float64."""
    draw = torch.Generator().manual_seed(seed + 1_000_003)
    return torch.randn(rows, channels, generator=draw, dtype=torch.float64)


def damped(gram: Tensor) -> Tensor:
    """H = G + eps I, as the damage curve defines it, for a Gram matrix without dead channels."""
    return gram + HESSIAN_DAMPING * gram.diagonal().mean() * torch.eye(len(gram)).double()


def support_damage(hessian: Tensor, weight: Tensor, kept: list[int]) -> float:
    """min over W' on the support of tr((W' - W) H (W' - W)^T), by least squares.

    With H = R^T R it is ||W' R_K^T - W R^T||^2, which needs no inverse of H.
    """
    root = torch.linalg.cholesky(hessian).T
    target = root @ weight.T
    if not kept:
        return float(target.square().sum())
    design = root[:, kept]
    solution = torch.linalg.lstsq(design, target).solution
    return float((design @ solution - target).square().sum())


def marginal_damages(hessian: Tensor, weight: Tensor, order: list[int]) -> Tensor:
    """Increase of the minimal damage at each removal of `order`, (f,) float64."""
    totals = [0.0]
    for removed in range(1, len(order) + 1):
        totals.append(support_damage(hessian, weight, order[removed:]))
    return torch.tensor(totals, dtype=torch.float64).diff()
