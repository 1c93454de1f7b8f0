"""The repair of a layer: new weights for the kept channels, close to the dense ones.

    minimise over W_K   tr((W_K E - W0) G (W_K E - W0)^T) + g ||W_K - W0_K||^2
    W_K = (W0 G_:K + g W0_K) (G_KK + g I)^-1,      g = damping * mean(diag G)

E picks the kept rows. This is ridge regression (Hoerl and Kennard 1970): least squares with a
penalty g on the size of the solution. We differ in what is penalised: the distance to the dense
weights, not to zero, so that a strong penalty leaves the model as it was. FLAP repairs a layer by a
bias alone.

In StructPrune's frame this is the W-step of the layer's ADMM with U = 0 and the support fixed. So
the one-shot method is the special case of one iteration.

Where other outputs are wanted than those of the dense matrix on the same inputs, as behind a block
that was removed, their products with the inputs take the place of W0 G_:K (`cross`).

Rows of W_K are independent: G_KK + g I is factorised once, then panels of rows of W0 pass through
both products and both substitutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.linalg.checked import checked, is_checked, require, settled
from strucprune_core.method.linalg.factorisation import (
    check_finite,
    factorise_into,
    raise_ridge,
    solve_backward,
    solve_forward,
)
from strucprune_core.method.linalg.matrices import (
    DeviceMatrix,
    Matrix,
    Room,
    as_matrix,
    carve,
    spans,
)

# Best single values found: 0.3 at 16,384 tokens, 0.1 at four times as many. Less overfits the
# calibration text (0.01: train error .074, held out .173 at one layer).
REFERENCE_DAMPING, REFERENCE_TOKENS = 0.3, 16384
DAMPING_RANGE = (0.03, 3.0)
_REMEDY = "Use more calibration samples, or a larger pruning.damping."


@dataclass(frozen=True, slots=True)
class Ridge:
    """How a repair went.

    Attributes:
        damping: Ridge used, relative to mean(diag G).
        retries: Times the ridge had to be raised.
        dtype: What it was computed in.
    """

    damping: float
    retries: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RidgeSolution:
    """Weights of the kept channels.

    Attributes:
        weight: W_K, (d x k), float64.
        damping: Ridge used, relative to mean(diag G).
        retries: Times the ridge had to be raised.
    """

    weight: Tensor
    damping: float
    retries: int


def default_damping(tokens: int) -> float:
    """The damping rule `0.3 * 16384 / tokens`, clipped to [0.03, 3]; of the tokens a site saw."""
    low, high = DAMPING_RANGE
    return min(high, max(low, REFERENCE_DAMPING * REFERENCE_TOKENS / max(1, tokens)))


def ridge(gram: Tensor, weight: Tensor, kept: Tensor, damping: float) -> RidgeSolution:
    """Solve for the kept channels' weights, all on the device.

    Args:
        gram: G, (f x f), any float dtype; computed on in float64.
        weight: W0, (d x f), any float dtype.
        kept: K, (k,) int64, ascending.
        damping: Ridge relative to mean(diag G), > 0.

    Raises:
        NumericalFailure: G_KK cannot be factorised, or the solution is not finite.
    """
    solution = torch.empty(len(weight), len(kept), dtype=torch.float64, device=gram.device)
    went = ridge_into(
        as_matrix(gram), as_matrix(weight), kept, damping, DeviceMatrix(solution), Room(gram.device)
    )
    return RidgeSolution(solution, went.damping, went.retries)


def ridge_into(
    gram: Matrix,
    weight: Matrix,
    kept: Tensor,
    damping: float,
    solution: Matrix,
    room: Room,
    cross: Matrix | None = None,
) -> Ridge:
    """The same by panels.

    Args:
        gram: G, (f x f), any float dtype.
        weight: W0, (d x f), any float dtype.
        kept: K, (k,) int64, ascending.
        damping: Ridge relative to mean(diag G), > 0.
        solution: Where W_K goes, (d x k), any float dtype.
        room: Where the factor lies, sizes of panels, and in what to compute: in float32 a solution
            is refined once, and used if its residual is small enough (see `linalg.checked`).
        cross: The wanted outputs times the kept inputs, sum_t w_t y_t a_t^T / sum_t w_t, (d x k);
            None: those of the dense matrix, W0 G_:K.

    Raises:
        NumericalFailure: as `ridge`.
    """
    return checked(room, lambda room: _solved(gram, weight, kept, damping, solution, room, cross))


def _solved(
    gram: Matrix,
    weight: Matrix,
    kept: Tensor,
    damping: float,
    solution: Matrix,
    room: Room,
    cross: Matrix | None,
) -> Ridge:
    (d, f), k = weight.shape, len(kept)
    diagonal = gram.diagonal().double()
    check_finite(diagonal)
    mean_energy = float(diagonal.mean())
    del diagonal
    most = room.panels.rows(f)
    rows = min(d, most)
    if mean_energy == 0.0:  # No token ever reaches this layer's FFN: the dense weights stand.
        dense = room.flat(rows * k)
        for span in spans(d, rows):
            panel = carve(dense, span.stop - span.start, k)
            weight.gather(span, kept, panel)
            solution.write(span, slice(0, k), panel)
        return Ridge(damping, 0, room.dtype)
    lower = room.matrix(k, k)

    def attempt(ridge: float) -> bool:
        def fill(span: slice, panel: Tensor) -> None:
            gram.gather(kept[span], kept[: span.stop], panel)
            panel[:, span].diagonal().add_(ridge)

        return settled(factorise_into(lower, fill, room), room)

    used, retries = raise_ridge(attempt, damping * mean_energy, _REMEDY)
    dense, right = room.flat(rows * f), room.flat(rows * k)
    columns = room.flat(min(k, most) * f)  # Panels of G_:K, and later of the factor.
    for span in spans(d, rows):
        w, b = carve(dense, span.stop - span.start, f), carve(right, span.stop - span.start, k)
        weight.gather(span, slice(0, f), w)
        if cross is not None:
            cross.gather(span, slice(0, k), b)
        for part in spans(k, most):
            if cross is None:
                g = carve(columns, part.stop - part.start, f)
                gram.gather(kept[part], slice(0, f), g)
                torch.mm(w, g.T, out=b[:, part])
            b[:, part].add_(w[:, kept[part]], alpha=used)
        wanted = b.clone() if is_checked(room) else None
        inner = min(k, room.panels.rows(k))
        solve_forward(lower, b, inner, columns)
        solve_backward(lower, b, inner, columns)
        if wanted is not None:
            _refine(gram, kept, used, lower, wanted, b, columns)
        if not torch.isfinite(b.sum()):  # Without a mask as large as b.
            raise NumericalFailure("the reconstructed weights are not finite", remedy=_REMEDY)
        solution.write(span, slice(0, k), b)
        room.tick()
    return Ridge(used / mean_energy, retries, room.dtype)


def _refine(
    gram: Matrix,
    kept: Tensor,
    ridge: float,
    lower: Matrix,
    wanted: Tensor,
    solution: Tensor,
    columns: Tensor,
) -> None:
    """One step of iterative refinement, in place; then the error must be small.

    With H = G_KK + g I and the residual R = B - X H, the error in the norm of the layer's output is

        tr((X - X*) H (X - X*)^T) = tr(R H^-1 R^T) <= ||R||^2 / g,

    which is compared with the solution's own, tr(X H X^T) = tr(X B^T) up to R.

    Args:
        gram: G, (f x f).
        kept: K, (k,).
        ridge: What was added to its diagonal.
        lower: The factor of G_KK + ridge I.
        wanted: Right side, (r x k); overwritten.
        solution: X, (r x k), with X (G_KK + ridge I) = the right side.
        columns: A buffer for panels.

    Raises:
        Inaccurate: the error may be too large.
    """
    k = len(kept)
    inner = max(1, min(k, len(columns) // k))
    change = wanted.clone()
    _subtract_product(gram, kept, ridge, solution, change, inner, columns)
    solve_forward(lower, change, inner, columns)
    solve_backward(lower, change, inner, columns)
    solution.add_(change)
    torch.mul(solution, wanted, out=change)
    energy = float(change.sum(dtype=torch.float64))
    del change
    _subtract_product(gram, kept, ridge, solution, wanted, inner, columns)
    error = float(wanted.square_().sum(dtype=torch.float64)) / ridge
    if error > 0.0:
        require((error / energy) ** 0.5 if energy > 0.0 else math.inf)


def _subtract_product(
    gram: Matrix,
    kept: Tensor,
    ridge: float,
    solution: Tensor,
    target: Tensor,
    step: int,
    columns: Tensor,
) -> None:
    """Subtract X (G_KK + ridge I) from a tensor, (r x k)."""
    k = len(kept)
    for part in spans(k, step):
        panel = carve(columns, part.stop - part.start, k)
        gram.gather(kept[part], kept, panel)
        target[:, part].addmm_(solution, panel.T, alpha=-1)
    target.sub_(solution, alpha=ridge)


def relative_error(
    activations: Tensor, dense: Tensor, pruned: Tensor, kept: Tensor
) -> float | None:
    """Squared output error on given tokens, relative to the dense output's energy.

    None if it is unknown: there are no tokens, or the dense output is zero and the pruned one not.

    Args:
        activations: Token-weighted FFN activations, (n x f).
        dense: W0, (d x f), of the same dtype.
        pruned: W_K, (d x k), likewise.
        kept: K, (k,) int64.
    """
    room = Room(activations.device)
    return relative_error_by_panels(
        as_matrix(activations), as_matrix(dense), as_matrix(pruned), kept, room, activations.dtype
    )


def relative_error_by_panels(
    activations: Matrix,
    dense: Matrix,
    pruned: Matrix,
    kept: Tensor,
    room: Room,
    dtype: torch.dtype = torch.float32,
) -> float | None:
    """The same by panels of the tokens and of the outputs; computed in `dtype`, summed in float64.

    What is on the device: panels of W0 and W_K, and of the activations with their kept columns.
    """
    (n, f), (d, k) = activations.shape, pruned.shape
    if n == 0:
        return None
    count = room.panels.rows(f)
    outputs, tokens = min(d, count), min(n, count)
    w, w_k = room.flat(outputs * f, dtype), room.flat(outputs * k, dtype)
    a, a_k = room.flat(tokens * f, dtype), room.flat(tokens * k, dtype)
    error = energy = 0.0
    for span in spans(d, outputs):
        size = span.stop - span.start
        whole, left = carve(w, size, f), carve(w_k, size, k)
        dense.gather(span, slice(0, f), whole)
        pruned.gather(span, slice(0, k), left)
        for rows in spans(n, tokens):
            seen, seen_k = (
                carve(a, rows.stop - rows.start, f),
                carve(a_k, rows.stop - rows.start, k),
            )
            activations.gather(rows, slice(0, f), seen)
            activations.gather(rows, kept, seen_k)
            wanted = seen @ whole.T
            energy += float(wanted.square().sum(dtype=torch.float64))
            wanted.addmm_(seen_k, left.T, alpha=-1)
            error += float(wanted.square().sum(dtype=torch.float64))
            room.tick()
    return ratio_to_energy(error, energy)


def ratio_to_energy(error: float, energy: float) -> float | None:
    """An error relative to an energy: 0 if both are zero, None (unknown) if only the energy is."""
    if energy > 0.0:
        return error / energy
    return 0.0 if error == 0.0 else None
