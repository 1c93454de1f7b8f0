"""How often a job may stall at the same place: a unit that hangs each time hangs for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A device that hangs is another one the next time; a unit that hangs on three of them is at fault.
MAX_STALLS = 3


def after_stall(
    earlier: Mapping[str, Any] | None, progress: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The next attempt's plan after one that stalled, or None if it has stalled there too often.

    Args:
        earlier: The plan of the attempt that stalled (`JobRecord.plan`).
        progress: The last progress that it reported.
    """
    plan = dict(earlier or {})
    at = place(progress)
    times = int(plan.get("stalls", 0)) + 1 if plan.get("stalled_at") == at else 1
    if times >= MAX_STALLS:
        return None
    return {**plan, "stalls": times, "stalled_at": at}


def place(progress: Mapping[str, Any] | None) -> str:
    """Where an attempt is, as far as another one at the same unit says the same."""
    if progress is None:
        return "start"
    return f"{progress.get('phase')} {progress.get('layers_done')}"
