"""`strucprune estimate`: what a job will need and produce. No torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.estimate_table import show_estimate
from strucprune_core.commands.failures import failures
from strucprune_core.commands.job_body import parse_spec
from strucprune_core.commands.job_command import JobBody, takes_job
from strucprune_core.commands.times import print_time_here

if TYPE_CHECKING:
    from strucprune_core.plan.facts import ModelFacts
    from strucprune_core.spec import JobSpec


@takes_job()
def estimate(
    body: JobBody,
    time: Annotated[
        bool,
        typer.Option(
            "--time/--no-time",
            help="Say how long it takes on this machine, whose speed is measured in some seconds "
            "and remembered for a week.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a job will need and produce.

    Sizes before and after, memory by step, disk, work and time; no weights are read.

    Takes the options of prune. The default is 30 % and a perplexity report of the default size.
    """
    from strucprune_core.plan.estimate import estimate_job
    from strucprune_core.plan.inspection import check_reach, read_job_model
    from strucprune_core.plan.precision import with_planned_precision
    from strucprune_core.plan.targets import resolved
    from strucprune_core.storage.open import open_store

    with failures(as_json):
        spec = parse_spec(_estimated(body()))
        facts = read_job_model(spec, open_store)
        spec = resolved(spec, facts, partial(check_reach, config=facts.config))
        spec = with_planned_precision(spec, facts)
        for alone in spec.by_size().values():
            check_reach(alone.pruning, facts.config)
        found = estimate_job(spec, facts).model_dump()
        taken = _time(spec, facts) if time else None
        show_estimate({**found, "time": taken} if as_json else found, as_json)
        if taken is not None and not as_json:
            print_time_here(taken)


def _time(spec: JobSpec, facts: ModelFacts) -> dict[str, Any] | None:
    """The job's time on this machine; None if that cannot be told."""
    from strucprune_core.evaluation.known_rates import cache_folder, known_rates
    from strucprune_core.plan.seconds import estimated_seconds

    rates = known_rates(cache_folder() / "strucprune", spec.runtime.device)
    return None if rates is None else estimated_seconds(spec, facts, rates).model_dump(mode="json")


def _estimated(body: dict[str, Any]) -> dict[str, Any]:
    """The job with placeholders where an estimate needs no value: it reads no text."""
    body["output"].setdefault("uri_prefix", "not-written")
    if not {"expert_count", "sizes", "target"} & {*body["pruning"]}:
        body["pruning"].setdefault("sparsity", 0.3)
    if body["calibration"].get("source") != "self":
        body["calibration"].setdefault("uri", "not-read.txt")
    body.setdefault("evaluation", {}).setdefault("uri", "not-read.txt")
    return body
