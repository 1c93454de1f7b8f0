"""A job as people see it, and as JSON. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strucprune_core.commands.console import show, show_warnings

if TYPE_CHECKING:
    from strucprune_core.client.models import Job


def as_dict(job: Job) -> dict[str, Any]:
    """A job as `--json` shows it."""
    return job.model_dump(mode="json", exclude={"etag"})


def print_job(job: Job, as_json: bool) -> None:
    """Print a job."""
    if as_json:
        show(as_dict(job), as_json)
        return
    facts: dict[str, Any] = {"id": job.id, "state": job.state, "attempt": job.attempt}
    facts["model"] = job.spec["model"]["uri"]
    facts["output"] = job.spec["output"]["uri_prefix"]
    facts["created"] = f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if job.progress is not None and not job.ended:
        now = job.progress
        facts["progress"] = f"{now.fraction:.0%}, {now.phase} {now.layers_done}/{now.layers_total}"
        if now.eta_seconds is not None:
            facts["about"] = f"{now.eta_seconds:.0f} s left"
    if job.error is not None:
        layer = "" if job.error.layer is None else f" in layer {job.error.layer}"
        remedy = job.error.remedy or ""
        facts["error"] = f"{job.error.code}{layer}: {job.error.message} {remedy}"
    for name in ("parameters", "perplexity"):
        figures = (job.summary or {}).get(name)
        if figures:
            facts[name] = f"{figures['before']:,.6g} -> {figures['after']:,.6g}"
    show(facts, as_json)
    show_warnings((job.summary or {}).get("warnings", []))
