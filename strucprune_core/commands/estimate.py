"""`strucprune estimate`: what a job will need and produce. No torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.estimate_table import show_estimate
from strucprune_core.commands.failures import failures
from strucprune_core.commands.job_body import parse_spec
from strucprune_core.commands.job_command import JobBody, takes_job


@takes_job()
def estimate(body: JobBody, as_json: JsonOption = False) -> None:
    """Estimate what a job will need and produce.

    Sizes before and after, memory by step, disk and work; no weights are read.

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
        show_estimate(estimate_job(spec, facts).model_dump(), as_json)


def _estimated(body: dict[str, Any]) -> dict[str, Any]:
    """The job with placeholders where an estimate needs no value: it reads no text."""
    body["output"].setdefault("uri_prefix", "not-written")
    if not {"expert_count", "sizes", "target"} & {*body["pruning"]}:
        body["pruning"].setdefault("sparsity", 0.3)
    if body["calibration"].get("source") != "self":
        body["calibration"].setdefault("uri", "not-read.txt")
    body.setdefault("evaluation", {}).setdefault("uri", "not-read.txt")
    return body
