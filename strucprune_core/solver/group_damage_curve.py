"""The damage curve of structures that span several columns: heads and KV groups.

As in `damage_curve`, with S a whole structure at a time: removing it costs
tr(W_S ([H^-1]_SS)^-1 W_S^T), exactly, and the cheapest goes first. There are few structures, so
each step looks at all that are left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.solver.damage_curve import DamageCurve, Tick, ignore_steps, inverse_hessian
from strucprune_core.solver.factorisation import check_finite


def group_damage_curve(
    gram: Tensor, weight: Tensor, columns: int, lockstep: int = 1, tick: Tick = ignore_steps
) -> DamageCurve:
    """Order structures by OBS, with the marginal damage of each.

    Args:
        gram: G, (m x m), any float dtype; computed on in float64.
        weight: W, (d x m), any float dtype.
        columns: Columns of one structure; m is a multiple.
        lockstep: Families of equally many consecutive structures; every `lockstep` removals take
            one of each.
        tick: Told structures (done, total) after each removal: safe points to stop at.

    Raises:
        NumericalFailure: G is not finite or cannot be factorised (see `factorisation`).
    """
    check_finite(gram)
    structures = len(gram) // columns
    if not bool(gram.diagonal().any()):  # No token ever gets here: removing anything is free.
        free = torch.zeros(structures, dtype=torch.float64)
        return DamageCurve(_round_robin(structures, lockstep), free, retries=0)
    inverse, retries = inverse_hessian(gram)
    left_weight = weight.double().clone()
    left = list(range(structures))
    order: list[int] = []
    damage: list[float] = []
    family_size = structures // lockstep
    while left:
        round_began = len(order) - len(order) % lockstep
        gone_from = {structure // family_size for structure in order[round_began:]}
        costs = {
            structure: _cost(inverse, left_weight, _span(structure, columns))
            for structure in left
            if structure // family_size not in gone_from
        }
        chosen = min(costs, key=costs.__getitem__)
        _remove(inverse, left_weight, _span(chosen, columns))
        left.remove(chosen)
        order.append(chosen)
        damage.append(costs[chosen])
        tick(len(order), structures)
    marginal = torch.tensor(damage, dtype=torch.float64).clamp_min(0.0)
    if lockstep > 1:  # A round goes as one, so its structures share its cost.
        marginal = marginal.view(-1, lockstep).mean(1, keepdim=True).expand(-1, lockstep).flatten()
    return DamageCurve(torch.tensor(order), marginal.cummax(0).values, retries)


def _round_robin(structures: int, lockstep: int) -> Tensor:
    return torch.arange(structures).view(lockstep, -1).T.flatten()


def _span(structure: int, columns: int) -> slice:
    return slice(structure * columns, (structure + 1) * columns)


def _cost(inverse: Tensor, weight: Tensor, span: slice) -> float:
    solved = torch.linalg.solve(inverse[span, span], weight[:, span], left=False)
    return float((solved * weight[:, span]).sum())


def _remove(inverse: Tensor, weight: Tensor, span: slice) -> None:
    """Take a structure out of both, in place; its own columns become inert."""
    cross = inverse[:, span].clone()
    block = cross[span].clone()
    weight -= torch.linalg.solve(block, weight[:, span], left=False) @ cross.T
    inverse -= cross @ torch.linalg.solve(block, cross.T)
    weight[:, span] = 0.0
    inverse[span] = 0.0
    inverse[:, span] = 0.0
    inverse[span, span] = torch.eye(len(block), dtype=block.dtype, device=block.device)
