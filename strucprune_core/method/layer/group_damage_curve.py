"""The damage curve of structures that span several columns: attention heads and KV groups.

As in `damage_curve`, with S a whole structure: removing it costs tr(W_S ([H^-1]_SS)^-1 W_S^T), the
structured saliency of ZipLM (Kurtic et al. 2023), and the cheapest goes first. Structures are few,
so every step ranks all that are left, one at a time. We add one constraint, for query heads:
families (KV groups) lose equally many, since model formats store one number of query heads per KV
head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.method.layer.damage_curve import DamageCurve, prepare, room_of
from strucprune_core.method.layer.elimination import Policy, eliminate
from strucprune_core.method.linalg.checked import checked
from strucprune_core.method.linalg.factorisation import check_finite
from strucprune_core.method.linalg.matrices import Matrix, Room, as_matrix


def group_damage_curve(
    gram: Tensor | Matrix,
    weight: Tensor | Matrix,
    columns: int,
    lockstep: int = 1,
    room: Room | None = None,
) -> DamageCurve:
    """Order structures by OBS, with the marginal damage of each.

    Args:
        gram: G, (m x m), any float dtype.
        weight: W, (d x m), any float dtype.
        columns: Columns of one structure; m is a multiple.
        lockstep: Families of equally many consecutive structures; every `lockstep` removals take
            one of each.
        room: Where matrices lie, sizes of panels, and in what to compute (see `linalg.checked`);
            None: on the device of G, in float64.

    Raises:
        NumericalFailure: G is not finite or cannot be factorised (see `factorisation`).
    """
    room = room or room_of(gram)
    return checked(
        room, lambda room: _curve(as_matrix(gram), as_matrix(weight), columns, lockstep, room)
    )


def _curve(gram: Matrix, weight: Matrix, columns: int, lockstep: int, room: Room) -> DamageCurve:
    energy = gram.diagonal()
    check_finite(energy)
    m = len(energy)
    structures = m // columns
    if not bool(energy.any()):  # No token ever gets here: removing anything is free.
        free = torch.zeros(structures, dtype=torch.float64)
        return DamageCurve(_round_robin(structures, lockstep), free, retries=0)
    del energy
    every = torch.arange(m, device=room.device)
    problem, retries, check = prepare(gram, weight, every, columns, room)
    family_size = structures // lockstep
    gone_from: set[int] = set()  # Families of which the present round has taken one.

    def choose(costs: Tensor, groups: Tensor, count: int) -> Tensor:
        families = (groups // family_size).tolist()
        priced = costs.tolist()
        open_to = [place for place, family in enumerate(families) if family not in gone_from]
        chosen = min(open_to, key=priced.__getitem__)
        gone_from.add(families[chosen])
        if len(gone_from) == lockstep:
            gone_from.clear()
        return torch.tensor([chosen], device=groups.device)

    order, damage = eliminate(problem, Policy(_costs, choose, most=1), room, check)
    marginal = damage.cpu().double().clamp_min(0.0)
    if lockstep > 1:  # A round goes as one, so its structures share its cost.
        marginal = marginal.view(-1, lockstep).mean(1, keepdim=True).expand(-1, lockstep).flatten()
    return DamageCurve(order.cpu(), marginal.cummax(0).values, retries, room.dtype)


def _round_robin(structures: int, lockstep: int) -> Tensor:
    return torch.arange(structures).view(lockstep, -1).T.flatten()


def _costs(inverse: Tensor, weight_gram: Tensor) -> Tensor:
    """tr(M_SS P_SS^-1) of each structure; meaningless for removed ones, which `eliminate` masks."""
    lower, _ = torch.linalg.cholesky_ex(inverse)
    return torch.cholesky_solve(weight_gram, lower).diagonal(dim1=-2, dim2=-1).sum(-1)
