"""`select`: which experts stay."""

from __future__ import annotations

from strucprune_core.method.experts import stay
from strucprune_core.models.experts import routing_of
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.sites import kept_experts
from strucprune_core.run.artifacts import Route, RouteValues, SelectValues
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.spec import PruningSpec


def select(job: Job, unit: Unit, draft: Draft) -> None:
    """Choose the experts of every layer; writes no file."""
    pruning, routing = job.spec.pruning, routing_of(job.config)
    count = kept_experts(pruning, job.config)
    kept: list[list[int]] = []
    for layer in range(job.config.layers):
        values = job.units.values(Route(layer))
        scores = scores_of(pruning, values)
        kept.append(stay(scores, values.tokens, count, routing.groups) if scores else [])
    draft.record(SelectValues(kept))


def scores_of(pruning: PruningSpec, values: RouteValues) -> list[float]:
    """The scores that a job goes by, by expert."""
    return values.reap if pruning.expert_score == "reap" else values.output_norm
