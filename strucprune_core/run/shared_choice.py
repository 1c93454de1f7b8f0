"""How many experts go beside channels: the two share one budget, and one sum of losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from strucprune_core.method.allocation.blocks import Step, choose_steps
from strucprune_core.models.experts import experts_of, routing_of
from strucprune_core.plan.shared_budget import shared_budget, step_parameters
from strucprune_core.run.artifacts import ExpertProbe
from strucprune_core.run.context import Job
from strucprune_core.run.expert_choice import kept_of
from strucprune_core.run.site_split import SiteSplit, Split


def kept_after(job: Job, steps: int) -> list[list[int]]:
    """By layer the experts that stay after so many steps; none for a layer without experts."""
    routing = routing_of(job.config)
    count = routing.experts - steps * routing.groups
    return [
        [] if experts_of(job.config, layer) is None else kept_of(job, layer, count)
        for layer in range(job.config.layers)
    ]


def best_number(job: Job) -> tuple[int, float, Split]:
    """(steps of experts, their measured loss, what goes of the channels), of least loss together.

    Each number that was measured is tried: beside it, the damage curves of the channels say what
    the rest of the budget costs (`method.allocation.blocks.choose_steps`).
    """
    budget, each = shared_budget(job.config, job.spec.pruning), step_parameters(job.config)
    measured = [(0, 0.0), *job.units.values(ExpertProbe()).losses]
    channels = SiteSplit(job)

    def loss_of_rest(_: int, rest: int) -> float | None:
        split = channels.of(job.planned, rest)
        return None if split is None else sum(split.predicted_damages)

    number = choose_steps(_steps(measured, each), budget, loss_of_rest)
    assert number is not None  # noqa: S101 - `plan.shared_budget`: so many may go
    steps, loss = measured[number]
    split = channels.of(job.planned, budget - steps * each)
    assert split is not None  # noqa: S101 - `choose_steps` has tried it
    return steps, loss, split


def _steps(measured: Sequence[tuple[int, float]], each: int) -> list[Step]:
    """Each measured number after the one before it."""
    return [
        Step((steps - before) * each, loss) for (before, _), (steps, loss) in pairwise(measured)
    ]
