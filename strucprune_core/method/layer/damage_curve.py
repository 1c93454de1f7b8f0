"""The damage curve of a layer: what it costs to remove its first, second, ... r-th channel.

With H = G + eps I, removing the set S of columns and solving the others again raises the layer's
squared output error by

    tr(W_S ([H^-1]_SS)^-1 W_S^T),     for one column  ||W_j||^2 / [H^-1]_jj.

This is the saliency of Optimal Brain Surgeon (Hassibi and Stork 1993), for whole columns as in
ZipLM (Kurtic et al. 2023). SparseGPT prunes single weights by the same formula. The cheapest
columns go first, a block at a time (`elimination` does the algebra).

We rank columns once, here, and start `admm` from the result. Wanda and FLAP score a column by its
weights and an activation statistic (norm, fluctuation). Such a score ignores that other columns can
take over its part. We also replace the marginal damage by its running maximum. That makes the curve
convex, which `allocation.threshold` needs for its closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.method.layer.curve_check import CurveCheck
from strucprune_core.method.layer.elimination import Policy, Problem, eliminate
from strucprune_core.method.linalg.checked import checked, is_checked, settled
from strucprune_core.method.linalg.factorisation import check_finite, raise_ridge
from strucprune_core.method.linalg.matrices import Matrix, Room, as_matrix, carve, spans
from strucprune_core.method.linalg.panels import BLOCK_CHANNELS
from strucprune_core.method.linalg.symmetric import add_gram, invert, mirror

HESSIAN_DAMPING = 0.01  # eps relative to mean(diag G); enough to invert, too small to reorder.
DEAD_ENERGY = 1e-12  # Below this share of the mean squared activation a channel never fires.


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """Order of removal, and what each removal costs.

    Attributes:
        order: Channel indices, first to go first, (f,) int64.
        damage: Non-decreasing marginal damage of the r-th removal, (f,) float64.
        retries: Times the ridge had to be raised to factorise G; 0 is usual.
        dtype: What it was computed in.
    """

    order: Tensor
    damage: Tensor
    retries: int
    dtype: torch.dtype = torch.float64


def damage_curve(
    gram: Tensor | Matrix,
    weight: Tensor | Matrix,
    block: int = BLOCK_CHANNELS,
    room: Room | None = None,
) -> DamageCurve:
    """Order all channels of a layer by OBS, with the marginal damage of each.

    Args:
        gram: G, (f x f), any float dtype.
        weight: W, (d x f), any float dtype.
        block: Channels removed per update.
        room: Where matrices lie, sizes of panels, and in what to compute (see `linalg.checked`);
            None: on the device of G, in float64.

    Raises:
        NumericalFailure: G is not finite or cannot be factorised (see `factorisation`).
    """
    room = room or room_of(gram)
    return checked(room, lambda room: _curve(as_matrix(gram), as_matrix(weight), block, room))


def _curve(gram: Matrix, weight: Matrix, block: int, room: Room) -> DamageCurve:
    energy = gram.diagonal().double()
    check_finite(energy)  # Before `dead`: next to an infinite energy all others look dead.
    dead = energy <= DEAD_ENERGY * energy.mean()
    dead_first = dead.nonzero().flatten().cpu()
    alive = (~dead).nonzero().flatten()
    del energy, dead
    free = torch.zeros(len(dead_first), dtype=torch.float64)
    if alive.numel() == 0:
        return DamageCurve(dead_first, free, retries=0)
    problem, retries, check = prepare(gram, weight, alive, 1, room)
    policy = Policy(
        cost=lambda inverse, weight_gram: (weight_gram / inverse).flatten(),
        choose=lambda costs, groups, count: costs.topk(count, largest=False).indices,
        most=block,
    )
    order, damage = eliminate(problem, policy, room, check)
    marginal = torch.cat([free, damage.cpu().double()]).clamp_min(0.0)
    return DamageCurve(
        order=torch.cat([dead_first, order.cpu()]),
        damage=marginal.cummax(0).values,
        retries=retries,
        dtype=room.dtype,
    )


def room_of(gram: Tensor | Matrix) -> Room:
    """Room on the device that a tensor is on.

    Raises:
        ValueError: a matrix that is no tensor does not say where to compute.
    """
    if isinstance(gram, Tensor):
        return Room(gram.device)
    raise ValueError("a matrix that is not a tensor needs a room")


def prepare(
    gram: Matrix, weight: Matrix, columns: Tensor, size: int, room: Room
) -> tuple[Problem, int, CurveCheck | None]:
    """(G + eps I)^-1 and W^T W on some columns, how often eps had to be raised, and a check.

    There is nothing to check in float64.

    Args:
        gram: G, (f x f), any float dtype.
        weight: W, (d x f), any float dtype.
        columns: The columns to keep, (m,) int64, ascending; whole groups.
        size: Columns of a group.
        room: Where the matrices lie, and sizes of panels.

    Raises:
        NumericalFailure: G cannot be factorised (see `factorisation`).
        Inaccurate: in float32, the inverse has too few digits.
    """
    m = len(columns)
    mean_energy = float(gram.diagonal().double()[columns].mean())
    inverse = room.matrix(m, m)

    def attempt(eps: float) -> bool:
        _fill(inverse, gram, columns, eps, room)
        return settled(invert(inverse, room), room)

    eps, retries = raise_ridge(attempt, HESSIAN_DAMPING * mean_energy)
    weight_gram = room.matrix(m, m)
    _add_rows(weight_gram, weight, columns, room)
    problem = Problem(inverse, weight_gram, columns[::size] // size, size)
    check = CurveCheck(gram, columns, eps, problem, room) if is_checked(room) else None
    return problem, retries, check


def _fill(target: Matrix, gram: Matrix, columns: Tensor, eps: float, room: Room) -> None:
    """G + eps I on some columns, the lower half."""
    m = len(columns)
    step = room.panels.step(m)
    rows = room.flat(step * m)
    for span in spans(m, step):
        panel = carve(rows, span.stop - span.start, span.stop)
        gram.gather(columns[span], columns[: span.stop], panel)
        panel[:, span].diagonal().add_(eps)
        target.write(span, slice(0, span.stop), panel)
        room.tick()


def _add_rows(target: Matrix, weight: Matrix, columns: Tensor, room: Room) -> None:
    """W^T W of some columns, both halves, onto zeros."""
    m, d = len(columns), weight.shape[0]
    step, count = room.panels.step(m), min(d, room.panels.rows(m))
    rows, buffer = room.flat(count * m), room.buffer_for(target, step)
    for span in spans(d, count):
        part = carve(rows, span.stop - span.start, m)
        weight.gather(span, columns if m < weight.shape[1] else slice(0, m), part)
        add_gram(target, part, step, buffer)
        room.tick()
    mirror(target, step, buffer)
