"""A job as people see it, and as JSON. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from strucprune_core.commands import figures
from strucprune_core.commands.console import print_json, show_warnings
from strucprune_core.commands.failures import show_problem
from strucprune_core.commands.tables import print_facts, print_table
from strucprune_core.commands.times import predicted, starts

if TYPE_CHECKING:
    from strucprune_core.client.models import Job, QueuePlace


def as_dict(job: Job) -> dict[str, Any]:
    """A job as `--json` shows it."""
    return job.model_dump(mode="json", exclude={"etag"})


def print_job(job: Job, as_json: bool) -> None:
    """Print a job."""
    if as_json:
        print_json(as_dict(job))
        return
    print_facts({**_about(job), **_progress(job), **_outcome(job.summary or {})})
    if "sizes" in (job.summary or {}):
        _print_sizes((job.summary or {})["sizes"])
    if job.error is not None:
        place = "" if job.error.layer is None else f" (layer {job.error.layer})"
        show_problem(job.error.code, f"{job.error.message}{place}", remedy=job.error.remedy)
    show_warnings((job.summary or {}).get("warnings", []))


def time_of(at: datetime) -> str:
    """A point of time, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _about(job: Job) -> dict[str, str]:
    facts = {
        "id": job.id,
        **({} if job.name is None else {"name": job.name}),
        "state": job.state,
        "model": job.spec["model"]["uri"],
        "output": job.spec["output"]["uri_prefix"],
        "created": time_of(job.created_at),
    }
    if job.extends is not None:
        facts["extends"] = job.extends
    if job.run > 1 or job.attempt > 1:
        facts["attempt"] = f"{job.attempt} of run {job.run}"
    facts |= predicted(job.model_dump()["predicted"])
    if job.labels:
        facts["labels"] = " ".join(f"{name}={value}" for name, value in job.labels.items())
    return facts


def _progress(job: Job) -> dict[str, str]:
    if job.queue is not None:
        return {"queue": queue_place(job.queue)}
    now = job.progress
    if now is None or job.ended:
        return {}
    facts = {"progress": f"{now.fraction:.0%}, {now.phase} {now.layers_done}/{now.layers_total}"}
    if now.eta_seconds is not None:
        facts["left"] = f"about {figures.duration(now.eta_seconds)}"
    return facts


def queue_place(place: QueuePlace) -> str:
    """Where a job stands that has not begun: an estimate."""
    waits = {
        "limit": "waits for the limit of running jobs",
        "rest": "rests before it is tried again",
    }
    where = "" if place.position is None else f"number {place.position}"
    workers = f"{place.workers} worker{'' if place.workers == 1 else 's'}"
    start = "" if place.starts_in is None else f"starts {starts(place.starts_in.model_dump())}"
    return ", ".join(filter(None, [where, waits.get(place.waits_for, ""), workers, start]))


def _outcome(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a job came to; of several sizes what they have in common."""
    facts = {}
    styles: dict[str, tuple[str, Callable[[float], str]]] = {
        "parameters": ("parameters", figures.count),
        "bytes": ("checkpoint", figures.size),
        "perplexity": ("perplexity", figures.number),
    }
    for name, (shown, style) in styles.items():
        found = summary.get(name) or {}
        if "after" in found:
            before, after = found["before"], found["after"]
            changed = figures.change(before, after)
            facts[shown] = figures.from_to(style(before), style(after), changed)
        elif "before" in found:
            facts[f"dense {shown}"] = style(found["before"])
    if "seconds" in summary:
        facts["time"] = figures.duration(summary["seconds"])
    return facts


def _print_sizes(sizes: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            each["name"],
            figures.count(each["parameters"]),
            figures.size(each["bytes"]),
            figures.number(each["perplexity"]),
            figures.number(each["perplexity_ratio"]),
            "not published" if each["rejected"] else "",
        ]
        for each in sizes
    ]
    numbers = ["parameters", "checkpoint", "perplexity", "ratio"]
    print_table(["size", *numbers, ""], rows, right=numbers)
