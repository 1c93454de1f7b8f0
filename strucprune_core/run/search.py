"""The units `search.k`, which choose the sparsity of the next try or of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

from strucprune_core.errors import QualityCollapsed
from strucprune_core.method.allocation.loss_search import (
    DIGITS,
    MOST_LOSS,
    Try,
    best_try,
    next_sparsity,
)
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.inspection import check_reach
from strucprune_core.plan.search import label_of_try
from strucprune_core.plan.sites import allocate_widths
from strucprune_core.plan.targets import PLANNED_SPARSITY, Check, allowed_range, is_allowed
from strucprune_core.run.artifacts import Evaluate, Search, SearchValues
from strucprune_core.run.context import Job
from strucprune_core.run.energies import measured_energies, removed_damage
from strucprune_core.run.measured_site import MeasuredSite
from strucprune_core.run.sizes import Sizes
from strucprune_core.run.workspace import Draft


def search(sizes: Sizes, unit: Unit, draft: Draft) -> None:
    """Choose by the tries so far; writes no file.

    Raises:
        QualityCollapsed: after the last try, none has kept the ratio of perplexities.
    """
    job, tries = sizes.first, tries_before(sizes.first, unit.index)
    if unit.index > sizes.spec.tries:
        best = best_try(tries, _limit(job))
        if best is None:
            raise _none_kept(job, tries)
        draft.record(SearchValues(best.sparsity, best.predicted))
        return
    predicted = predicted_loss(job)
    check = partial(check_reach, config=job.config)
    least, most = allowed_range(job.spec, check)
    if not tries and job.energy == "forward":
        # Damage alone is not in nats: the first try finds its scale.
        wanted = min(max(PLANNED_SPARSITY, least), most)
    else:
        wanted = next_sparsity(
            tries,
            _limit(job),
            predicted,
            least=least,
            most=most,
            last=unit.index == sizes.spec.tries,
        )
    sparsity = _allowed_near(job, wanted, check)
    draft.record(SearchValues(sparsity, predicted(sparsity)))


def tries_before(job: Job, number: int) -> list[Try]:
    """The tries before the `number`-th search, with what was measured."""
    dense = job.units.values(Evaluate("dense")).perplexity
    found: list[Try] = []
    for before in range(1, number):
        chosen = job.units.values(Search(before))
        after = job.units.values(Evaluate("pruned"), size=label_of_try(before)).perplexity
        loss = math.log(after / dense) if math.isfinite(after) else MOST_LOSS
        found.append(Try(chosen.sparsity, chosen.predicted_loss, loss))
    return found


def predicted_loss(job: Job) -> Callable[[float], float]:
    """The loss of a sparsity as damage curves and energies predict it, in nats per token.

    Energies are those of the dense model, whatever rounds follow.
    """
    damages = [MeasuredSite(job, place.layer, place.site).damage() for place in job.planned]
    energies = measured_energies(job)

    @cache
    def predicted(sparsity: float) -> float:
        pruning = job.spec.pruning.at(sparsity)
        widths = allocate_widths(pruning, job.planned, damages, energies).widths
        return sum(
            alpha * removed_damage(damage, width)
            for alpha, damage, width in zip(energies, damages, widths, strict=True)
        )

    return predicted


def _limit(job: Job) -> float:
    ratio = job.spec.pruning.max_perplexity_ratio
    assert ratio is not None  # noqa: S101 - else the graph has no such unit
    return math.log(ratio)


def _allowed_near(job: Job, wanted: float, check: Check) -> float:
    """The sparsity, or the next lower one that the model allows: steps may be coarse."""
    step = 10**-DIGITS
    lower = (round(wanted - n * step, DIGITS) for n in range(int(wanted / step)))
    return next((each for each in lower if is_allowed(job.spec, each, check)), wanted)


def _none_kept(job: Job, tries: list[Try]) -> QualityCollapsed:
    nearest = min(tries, key=lambda each: each.measured)
    listed = ", ".join(f"{each.sparsity:g}: {math.exp(each.measured):.4g}" for each in tries)
    return QualityCollapsed(
        f"no sparsity that was tried keeps perplexity within {math.exp(_limit(job)):g} times that "
        f"of the dense model (tried, with their ratios: {listed}); nothing was published",
        field="pruning.target.max_perplexity_ratio",
        remedy=f"The least was {math.exp(nearest.measured):.4g}, at {nearest.sparsity:g}: ask for "
        "more, allow more tries, or repair more (pruning.distill).",
    )
