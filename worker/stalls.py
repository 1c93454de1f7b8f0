"""Limits how often a job may stall at the same place: a unit that always hangs never ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The next attempt probably runs on another device. After three of them the unit is at fault.
MAX_STALLS = 3


def after_stall(
    earlier: Mapping[str, Any] | None, progress: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The plan of the attempt after a stall, or None if attempts stalled there too often.

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
    """A name for where an attempt is, the same for every attempt that gets there."""
    if progress is None:
        return "start"
    return f"{progress.get('phase')} {progress.get('layers_done')}"
