"""The damage curve of a layer: what it costs to remove its first, second, ... r-th channel.

Optimal Brain Surgeon in blocks. With H = G + eps I, removing the set S and re-solving the rest
raises the layer's quadratic error by tr(W_S ([H^-1]_SS)^-1 W_S^T), and

    W    <- W    - W_S ([H^-1]_SS)^-1 [H^-1]_S:
    H^-1 <- H^-1 - [H^-1]_:S ([H^-1]_SS)^-1 [H^-1]_S:

Channels with the smallest ||W_j||^2 / [H^-1]_jj go first (Hassibi & Stork 1993, eq. 5; for whole
columns as in Kurtic et al. 2023, "ZipLM", eq. 3). The running maximum of the marginal damage makes
the curve convex, which is what lets `allocation.threshold` be a closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.solver.factorisation import check_finite, factorise

HESSIAN_DAMPING = 0.01  # eps relative to mean(diag G); enough to invert, too small to reorder.
BLOCK_CHANNELS = 16  # Removed per update: a rank-16 update is bound by compute, not by memory.
COMPACT_EVERY = 8  # Blocks between dropping dead rows and columns from the working matrices.
DEAD_ENERGY = 1e-12  # A channel below this share of the mean energy never fires.


Tick = Callable[[int, int], None]


def ignore_steps(done: int, total: int) -> None:
    """A tick for callers that do not watch."""


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """Order of removal and its price.

    Attributes:
        order: Channel indices, first to go first, (f,) int64.
        damage: Non-decreasing marginal damage of the r-th removal, (f,) float64.
        retries: Times the ridge had to be raised to factorise G; 0 is usual.
    """

    order: Tensor
    damage: Tensor
    retries: int


def damage_curve(
    gram: Tensor, weight: Tensor, block: int = BLOCK_CHANNELS, tick: Tick = ignore_steps
) -> DamageCurve:
    """Order all channels of a layer by OBS, with the marginal damage of each.

    Args:
        gram: G, (f x f), any float dtype; computed on in float64.
        weight: W, (d x f), any float dtype.
        block: Channels removed per update.
        tick: Told channels (done, total) after each update: safe points to stop at.

    Raises:
        NumericalFailure: G is not finite or cannot be factorised (see `factorisation`).
    """
    check_finite(gram)  # Before `dead`: beside an infinite energy all others look dead.
    energy = gram.diagonal().double()
    dead = energy <= DEAD_ENERGY * energy.mean()
    dead_first = dead.nonzero().flatten().cpu()
    alive = (~dead).nonzero().flatten()
    free = torch.zeros(len(dead_first), dtype=torch.float64)
    if alive.numel() == 0:
        return DamageCurve(dead_first, free, retries=0)
    inverse, retries = inverse_hessian(gram if len(alive) == len(gram) else gram[alive][:, alive])
    order, damage = _remove_in_blocks(inverse, weight[:, alive].double(), block, tick)
    marginal = torch.cat([free, damage.cpu()]).clamp_min(0.0)
    return DamageCurve(
        order=torch.cat([dead_first, alive.cpu()[order.cpu()]]),
        damage=marginal.cummax(0).values,
        retries=retries,
    )


def inverse_hessian(gram: Tensor) -> tuple[Tensor, int]:
    """(G + eps I)^-1, (m x m) float64, and how often eps had to be raised (see `factorisation`)."""
    eps = HESSIAN_DAMPING * float(gram.diagonal().double().mean())
    factor = factorise(gram.double(), eps)
    return torch.cholesky_inverse(factor.lower), factor.retries


def _remove_in_blocks(
    inverse: Tensor, weight: Tensor, block: int, tick: Tick
) -> tuple[Tensor, Tensor]:
    """OBS over live channels: the order (m,) and the marginal damage per channel (m,).

    Both arguments, H^-1 (m x m) and W (d x m), are float64 and are overwritten.
    """
    index = torch.arange(len(inverse), device=inverse.device)
    removed = torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
    order: list[Tensor] = []
    damage: list[Tensor] = []
    total = left = len(inverse)
    blocks_done = 0
    while left:
        saliency = weight.square().sum(0) / inverse.diagonal()
        saliency[removed] = torch.inf
        take = min(block, left)
        chosen = saliency.topk(take, largest=False).indices
        cross = inverse[:, chosen]
        solved = torch.linalg.solve(cross[chosen], weight[:, chosen], left=False)
        marginal = (solved * weight[:, chosen]).sum() / take
        order.append(index[chosen])
        damage.append(marginal.expand(take))
        weight.addmm_(solved, cross.T, alpha=-1)
        inverse.addmm_(cross, torch.linalg.solve(cross[chosen], cross.T), alpha=-1)
        # What a removed channel leaves behind is rounding noise: keep it out of later steps.
        weight[:, chosen] = 0.0
        inverse[chosen] = 0.0
        inverse[:, chosen] = 0.0
        inverse.diagonal()[chosen] = 1.0
        removed[chosen] = True
        left -= take
        blocks_done += 1
        tick(total - left, total)
        if blocks_done % COMPACT_EVERY == 0 and left:
            keep = (~removed).nonzero().flatten()
            index, weight = index[keep], weight[:, keep]
            inverse = inverse[keep][:, keep]
            removed = torch.zeros(left, dtype=torch.bool, device=inverse.device)
    return torch.cat(order), torch.cat(damage)
