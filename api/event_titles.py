"""What happened to a job, in plain English: a title for each event. Types and reasons stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.jobs.state import JobState
from strucprune_core.plan.titles import phase_title

# By state and reason; a reason that is not here is not worth a title of its own.
_STATES: dict[tuple[str, str], str] = {
    (JobState.QUEUED, ""): "Waits for a worker",
    (JobState.QUEUED, "requested"): "Resumed; waits for a worker",
    (JobState.QUEUED, "released"): "Given back by its worker unfinished; waits for another",
    (JobState.QUEUED, "retry"): "Attempt {attempt} failed for now; the next follows after a rest",
    (JobState.QUEUED, "retried"): "To be run again, as run {run}; waits for a worker",
    (JobState.QUEUED, "worker_lost"): "Its worker stopped answering; waits for another",
    (JobState.QUEUED, "declined"): "Waits for a worker with enough disk space",
    (JobState.RUNNING, ""): "Attempt {attempt} began",
    (JobState.RUNNING, "requested"): "The pause was withdrawn; the work goes on",
    (JobState.PAUSING, ""): "Asked to pause at the next safe point",
    (JobState.PAUSED, ""): "Paused",
    (JobState.CANCELLING, ""): "Asked to stop for good at the next safe point",
    (JobState.CANCELLED, ""): "Cancelled",
    (JobState.SUCCEEDED, ""): "Succeeded; the result is published",
    (JobState.FAILED, ""): "Failed",
    (JobState.FAILED, "retry"): "Failed; no attempts were left",
    (JobState.FAILED, "worker_lost"): "Failed; its worker stopped answering and no attempts were "
    "left",
    (JobState.FAILED, "deadline"): "Failed; its deadline passed",
}


def event_title(kind: str, data: Mapping[str, Any]) -> str:
    """The title of an event of this type; the type itself if it is unknown."""
    match kind:
        case "state":
            return _state_title(data)
        case "progress":
            return _progress_title(data)
        case "workers":
            workers = data.get("workers")
            return "1 worker works on it" if workers == 1 else f"{workers} workers work on it"
        case "layers":
            layers = data.get("index") or []
            return f"Results for layer {layers[0]}" if len(layers) == 1 else "Results for layers"
    return kind


def _state_title(data: Mapping[str, Any]) -> str:
    state, reason = str(data.get("state")), str(data.get("reason") or "")
    title = _STATES.get((state, reason)) or _STATES.get((state, "")) or state
    return title.format(run=data.get("run", 1), attempt=data.get("attempt"))


def _progress_title(data: Mapping[str, Any]) -> str:
    title, total = phase_title(str(data.get("phase"))), data.get("layers_total") or 0
    return f"{title}: {data.get('layers_done')} of {total}" if total > 1 else title
