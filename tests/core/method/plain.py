"""Damage curves as plainly as they can be written: what the lazy ones are compared with.

Both matrices, H^-1 and W, are updated whole after every removal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.layer.damage_curve import DEAD_ENERGY, HESSIAN_DAMPING


def plain_curve(gram: Tensor, weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Order and damage of all channels, removed `block` at a time."""
    energy = gram.diagonal().double()
    dead = energy <= DEAD_ENERGY * energy.mean()
    first, alive = dead.nonzero().flatten(), (~dead).nonzero().flatten()
    inverse = _inverse(gram[alive][:, alive])
    left_weight = weight[:, alive].double()
    left = torch.ones(len(alive), dtype=torch.bool)
    order, damage = [first], [torch.zeros(len(first), dtype=torch.float64)]
    while bool(left.any()):
        saliency = left_weight.square().sum(0) / inverse.diagonal()
        saliency[~left] = torch.inf
        chosen = saliency.topk(min(block, int(left.sum())), largest=False).indices
        cost = _remove(inverse, left_weight, chosen)
        order.append(alive[chosen])
        damage.append(torch.full((len(chosen),), cost / len(chosen), dtype=torch.float64))
        left[chosen] = False
    return torch.cat(order), torch.cat(damage).clamp_min(0.0).cummax(0).values


def plain_group_curve(
    gram: Tensor, weight: Tensor, columns: int, lockstep: int
) -> tuple[Tensor, Tensor]:
    """Order and damage of structures of several columns."""
    inverse, left_weight = _inverse(gram), weight.double().clone()
    structures = len(gram) // columns
    left = list(range(structures))
    order: list[int] = []
    damage: list[float] = []
    size = structures // lockstep
    while left:
        began = len(order) - len(order) % lockstep
        gone = {structure // size for structure in order[began:]}
        costs = {
            s: _remove(inverse.clone(), left_weight.clone(), _columns(s, columns))
            for s in left
            if s // size not in gone
        }
        chosen = min(costs, key=costs.__getitem__)
        damage.append(_remove(inverse, left_weight, _columns(chosen, columns)))
        order.append(chosen)
        left.remove(chosen)
    marginal = torch.tensor(damage, dtype=torch.float64).clamp_min(0.0)
    marginal = marginal.view(-1, lockstep).mean(1, keepdim=True).expand(-1, lockstep).flatten()
    return torch.tensor(order), marginal.cummax(0).values


def _inverse(gram: Tensor) -> Tensor:
    eps = HESSIAN_DAMPING * gram.diagonal().double().mean()
    damped = gram.double() + eps * torch.eye(len(gram), dtype=torch.float64)
    inverse: Tensor = torch.linalg.inv(damped)
    return inverse


def _columns(structure: int, columns: int) -> Tensor:
    return torch.arange(structure * columns, (structure + 1) * columns)


def _remove(inverse: Tensor, weight: Tensor, chosen: Tensor) -> float:
    """Take columns out of both, in place, and give the cost; their own become inert."""
    cross = inverse[:, chosen].clone()
    block = cross[chosen].clone()
    solved = torch.linalg.solve(block, weight[:, chosen], left=False)
    cost = float((solved * weight[:, chosen]).sum())
    weight -= solved @ cross.T
    inverse -= cross @ torch.linalg.solve(block, cross.T)
    weight[:, chosen] = 0.0
    inverse[chosen] = 0.0
    inverse[:, chosen] = 0.0
    inverse[chosen, chosen] = 1.0
    return cost
