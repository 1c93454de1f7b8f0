"""Which structures a layer keeps, by ADMM: reconstruction and sparsity split, tied by a dual.

    minimise   1/2 tr((W - W0) H (W - W0)^T)   subject to   W = Z,  Z has k groups that are not zero

    W <- W0 + r (Z - U - W0) (H + r I)^-1        one factorisation per value of r
    Z <- the k groups of columns of W + U with the largest energy, the others zero
    U <- U + W - Z                               scaled dual: r U is the multiplier of W = Z

StructPrune prunes with ADMM (abstract, section 3); this module is that step inside one layer. The
iteration is ADMM in scaled form (Boyd et al. 2011, section 3.1.1) with a cardinality constraint
(section 9.1). The released code of StructPrune alternates updates of an FFN's matrices, as
SparseLLM does (Bai et al. 2024). We split only the matrix that is solved again: alternating was
not shown to help on our test model.

H = G + g I with g = damping * mean(diag G). With the damping of `ridge`, the solution on a fixed
support is that of `ridge`; but then removing W0_j is charged g ||W0_j||^2, which the outputs never
see. So a support is better chosen with the small damping of `damage_curve`, then repaired by
`ridge`.

The set of Z is not convex, so ADMM is a heuristic. We use it for the *support* only, and guard it:

- The weights come from `ridge` on the support.
- Every new support is priced by its exact optimum, which costs less than a W-step. The cheapest
  support seen is returned, so the result is never worse than the start.
- `choose_support` accepts it only if its error on held-out tokens is lower.

Started from the support of Optimal Brain Surgeon, it changed no result on SmolLM2-135M: held-out
tokens preferred none of its exchanges (benchmarks/results/rivals.json).

The energy of a group S in the Z-step, with V = W + U:

- "euclidean": ||V_S||^2, the exact minimiser of the Z-step.
- "saliency":  tr(V_S ([H^-1]_SS)^-1 V_S^T), what `damage_curve` ranks by; no longer a minimiser.
- "metric":    the same, with the penalty in that metric too, r/2 ||(W - Z + U) C||^2 where
               C_S C_S^T = ([H^-1]_SS)^-1. It is the exact minimiser again: plain ADMM in the
               coordinates W C. There a start (support K, its optimum, its multipliers) stays
               where it is iff, for all i in K and j not in K,
               saliency_i >= ||gradient_j||^2 [H^-1]_jj / r^2. At r = 1 both sides are damages, to
               first order: the damage of losing i, and of lacking j.

When r changes, H + r I is factorised again. One eigendecomposition would serve every r, but is more
expensive: a Cholesky factor takes f^3 / 3 operations, and a W-step takes 2 d f^2 with a factor but
4 d f^2 with eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.groups import (
    SaliencyMetric,
    columns_of,
    largest_groups,
    restricted,
)
from strucprune_core.method.layer.ridge import RidgeSolution, relative_error, ridge
from strucprune_core.method.linalg.factorisation import factorise

Ranking = Literal["euclidean", "saliency", "metric"]
RhoRule = Literal["fixed", "growing", "balanced"]

# Residual balancing (Boyd et al. 2011, section 3.4.1) on relative residuals, which do not change
# when the problem is scaled (Wohlberg 2017, "ADMM Penalty Parameter Selection").
BALANCE_RATIO, BALANCE_FACTOR = 10.0, 2.0
RHO_RANGE = (1e-4, 1e6)  # Relative to mean(diag H); the rules do not change r beyond it.
DIVERGED_NORM = 1e3  # ||W + U|| relative to ||W0||: what Z keeps then says nothing of the layer.


class AdmmStatus(StrEnum):
    """How a run ended."""

    CONVERGED = "converged"  # Both residuals below the tolerance.
    SETTLED = "settled"  # The support, all that is used, has not changed for `patience` steps.
    ITERATION_LIMIT = "iteration_limit"
    DIVERGED = "diverged"


@dataclass(frozen=True, slots=True)
class AdmmOptions:
    """How to iterate.

    Attributes:
        ranking: Energy of a group in the Z-step.
        rho: First r, relative to the mean diagonal of H (of C^-1 H C^-T for "metric").
        rho_rule: Keep r, multiply it by `growth` each step, or balance the residuals with it.
        growth: For "growing".
        max_iterations: Steps at most.
        patience: Steps without a change of the support after which it counts as settled.
        tolerance: For both relative residuals.
    """

    ranking: Ranking = "metric"
    rho: float = 1.0
    rho_rule: RhoRule = "fixed"
    growth: float = 1.1
    max_iterations: int = 50
    patience: int = 10
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class AdmmStep:
    """One iteration.

    Attributes:
        rho: r, relative as in the options.
        primal: ||W - Z|| / max(||W||, ||Z||).
        dual: ||Z - Z_before|| / ||U||.
        changed: Groups that entered the support.
        objective: Exact optimum on this support, relative to removing everything.
    """

    rho: float
    primal: float
    dual: float
    changed: int
    objective: float


@dataclass(frozen=True, slots=True)
class AdmmResult:
    """A support and how it was found; never weights.

    Attributes:
        groups: The best support seen, the start included: (k,) int64, ascending, on the CPU.
        objective: Its exact optimum, relative to removing everything.
        last_groups: The support after the last iteration.
        start_objective: What the start is worth; None without one.
        status: How it ended.
        trace: The iterations, without the one that diverged.
        factorisations: Cholesky factors of (f x f) matrices.
    """

    groups: Tensor
    objective: float
    last_groups: Tensor
    start_objective: float | None
    status: AdmmStatus
    trace: tuple[AdmmStep, ...]
    factorisations: int


def admm(
    gram: Tensor,
    weight: Tensor,
    keep: int,
    damping: float,
    *,
    start: Tensor | None = None,
    group_size: int = 1,
    lockstep: int = 1,
    options: AdmmOptions | None = None,
    tick: Callable[[], None] = lambda: None,
) -> AdmmResult:
    """Choose `keep` groups of consecutive columns.

    Holds up to five (f x f) matrices in float64.

    Args:
        gram: G, (f x f), any float dtype; computed on in float64.
        weight: W0, (d x f), any float dtype.
        keep: Groups to keep, k, in [1, f / group_size].
        damping: Ridge of the objective relative to mean(diag G), > 0; see the module's docstring.
        start: Support to start from, (k,) group indices; None starts from W0.
        group_size: Columns of a group: 1 for FFN channels, head_dim (or a multiple) for attention.
        lockstep: Families of consecutive groups that keep equally many: the KV groups of query
            heads; 1: any groups.
        options: How to iterate.
        tick: Called before each iteration: a safe point to stop at.

    Raises:
        NumericalFailure: G is not finite or cannot be factorised.
        ValueError: `keep`, `start`, `group_size` or `lockstep` does not fit the shapes.
    """
    _check_shapes(len(gram), keep, start, group_size, lockstep)
    if start is not None:
        start = start.sort().values.to(gram.device)
    problem = LayerProblem.of(gram, weight, damping)
    run = _Run(problem, keep, group_size, lockstep, options or AdmmOptions())
    run.begin(start)
    status = run.iterate(tick)
    return AdmmResult(
        groups=run.best.cpu(),
        objective=run.best_objective,
        last_groups=run.support.cpu(),
        start_objective=None if start is None else run.first_objective,
        status=status,
        trace=tuple(run.trace),
        factorisations=run.factorisations,
    )


class _Run:
    """The state of one run: Z, U, r, the present support and the best one so far."""

    def __init__(
        self,
        problem: LayerProblem,
        keep: int,
        group_size: int,
        lockstep: int,
        options: AdmmOptions,
    ) -> None:
        self._problem, self._options = problem, options
        self._keep, self._size, self._lockstep = keep, group_size, lockstep
        # The coordinates of the iteration: the weights' own, or those of the metric.
        self._hessian, self._dense = problem.hessian, problem.dense
        self._coordinates: SaliencyMetric | None = None
        self._ranks_by: SaliencyMetric | None = None
        if options.ranking == "saliency":
            self._ranks_by = SaliencyMetric.of(problem.lower, group_size)
        if options.ranking == "metric":
            self._coordinates = SaliencyMetric.of(problem.lower, group_size)
            self._hessian = self._coordinates.transform(problem.hessian)
            self._dense = self._coordinates.scale(problem.dense)
        self._unit = float(self._hessian.diagonal().mean())
        self._rho = options.rho  # In units of `_unit`.
        self._lower, self._factored_rho = problem.lower, math.nan
        self.factorisations = 1
        self.trace: list[AdmmStep] = []

    def begin(self, start: Tensor | None) -> None:
        """Z and U: the optimum on the start and its multipliers, or W0 and zero."""
        if start is None:
            self._z, self._u = self._dense, torch.zeros_like(self._dense)
            self.support = self._largest(self._dense)
        else:
            self.support, columns = start, columns_of(start, self._size)
            self._z = _scaled(self._coordinates, self._problem.solution(columns))
            multipliers = (self._dense - self._z) @ self._hessian
            multipliers[:, columns] = 0.0  # But for rounding they are, and a small r magnifies it.
            self._u = multipliers / (self._rho * self._unit)
        self.best = self.support
        self._objective = self._problem.error(columns_of(self.support, self._size))
        self.first_objective = self.best_objective = self._objective

    def iterate(self, tick: Callable[[], None] = lambda: None) -> AdmmStatus:
        """Step until something ends it."""
        options, unchanged = self._options, 0
        while len(self.trace) < options.max_iterations:
            tick()
            if not self._step():
                return AdmmStatus.DIVERGED
            step = self.trace[-1]
            unchanged = 0 if step.changed else unchanged + 1
            if max(step.primal, step.dual) <= options.tolerance:
                return AdmmStatus.CONVERGED
            if unchanged >= options.patience:
                return AdmmStatus.SETTLED
            self._change_rho(step)
        return AdmmStatus.ITERATION_LIMIT

    def _step(self) -> bool:
        """W, Z and U once; False if that diverged, with Z, U and the support left as they were."""
        w = self._dense + self._solve(self._z - self._u - self._dense)
        v = w + self._u
        limit = DIVERGED_NORM * float(self._dense.norm())
        # Negated, so that it also holds for what is infinite or not a number.
        if not float(v.norm()) <= limit < math.inf:
            return False
        support = self._largest(v)
        z = restricted(v, support, self._size)
        u = v - z
        changed = self._keep - int(torch.isin(support, self.support).sum())
        if changed:
            self._objective = self._problem.error(columns_of(support, self._size))
        primal = _ratio((w - z).norm(), torch.maximum(w.norm(), z.norm()))
        dual = _ratio((z - self._z).norm(), u.norm())
        self.trace.append(AdmmStep(self._rho, primal, dual, changed, self._objective))
        self._z, self._u, self.support = z, u, support
        if self._objective < self.best_objective:
            self.best, self.best_objective = support, self._objective
        return True

    def _solve(self, right_side: Tensor) -> Tensor:
        """X r (H + r I)^-1, (d x f)."""
        rho = self._rho * self._unit
        if rho != self._factored_rho:
            self._lower = factorise(self._hessian, rho).lower
            self._factored_rho = rho
            self.factorisations += 1
        return rho * torch.cholesky_solve(right_side.T, self._lower).T

    def _change_rho(self, step: AdmmStep) -> None:
        growth = _growth(self._options, step)
        if growth == 1.0:
            return
        low, high = RHO_RANGE
        rho = min(max(self._rho * growth, low), high)
        self._u = self._u * (self._rho / rho)  # The multiplier r U stays what it is.
        self._rho = rho

    def _largest(self, matrix: Tensor) -> Tensor:
        ranked = _scaled(self._ranks_by, matrix)
        return largest_groups(ranked, self._keep, self._size, self._lockstep)


def _scaled(metric: SaliencyMetric | None, matrix: Tensor) -> Tensor:
    return matrix if metric is None else metric.scale(matrix)


def _growth(options: AdmmOptions, step: AdmmStep) -> float:
    if options.rho_rule == "growing":
        return options.growth
    if options.rho_rule == "balanced" and step.primal > BALANCE_RATIO * step.dual:
        return BALANCE_FACTOR
    if options.rho_rule == "balanced" and step.dual > BALANCE_RATIO * step.primal:
        return 1.0 / BALANCE_FACTOR
    return 1.0


def _ratio(part: Tensor, whole: Tensor) -> float:
    """0 / 0 is 0: nothing is removed, so there is nothing to agree on."""
    return float(part / whole) if float(part) > 0.0 else 0.0


def _check_shapes(
    columns: int, keep: int, start: Tensor | None, group_size: int, lockstep: int
) -> None:
    groups, rest = divmod(columns, group_size)
    if rest:
        raise ValueError(f"{columns} columns are not groups of {group_size}")
    if not 1 <= keep <= groups:
        raise ValueError(f"cannot keep {keep} of {groups} groups")
    if groups % lockstep or keep % lockstep:
        raise ValueError(f"{keep} of {groups} groups are not equally many in {lockstep} families")
    if start is not None and len(start) != keep:
        raise ValueError(f"the start has {len(start)} groups, {keep} are to be kept")


@dataclass(frozen=True, slots=True)
class SupportChoice:
    """The support that held-out tokens prefer, with its weights.

    Attributes:
        kept: K, columns, (k,) int64, ascending.
        solution: The ridge solution on K.
        taken: Which one it is.
        baseline_error: Relative error of the baseline on the held-out tokens; None if unknown.
        candidate_error: The same of the candidate.
    """

    kept: Tensor
    solution: RidgeSolution
    taken: Literal["baseline", "candidate"]
    baseline_error: float | None
    candidate_error: float | None


def choose_support(
    gram: Tensor,
    weight: Tensor,
    baseline: Tensor,
    candidate: Tensor,
    damping: float,
    holdout: Tensor,
) -> SupportChoice:
    """Take ADMM's support only where its repaired layer errs less on held-out tokens.

    Where there are none that is unknown, and the baseline stays.

    Args:
        gram: G, (f x f).
        weight: W0, (d x f).
        baseline: Columns kept by the one-shot method, (k,) int64, ascending.
        candidate: Columns kept by ADMM, likewise.
        damping: Ridge relative to mean(diag G).
        holdout: Token-weighted held-out activations, (n x f).

    Raises:
        NumericalFailure: a support cannot be solved.
    """

    def solve(kept: Tensor) -> tuple[RidgeSolution, float | None]:
        solution = ridge(gram, weight, kept, damping)
        pruned = solution.weight.to(holdout.dtype)
        return solution, relative_error(holdout, weight.to(holdout.dtype), pruned, kept)

    solution, error = solve(baseline)
    if torch.equal(baseline, candidate):
        return SupportChoice(baseline, solution, "baseline", error, error)
    other, other_error = solve(candidate)
    if error is not None and other_error is not None and other_error < error:
        return SupportChoice(candidate, other, "candidate", error, other_error)
    return SupportChoice(baseline, solution, "baseline", error, other_error)
