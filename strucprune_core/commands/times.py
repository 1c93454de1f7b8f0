"""How long a job takes and when it starts, for people. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strucprune_core.commands import figures
from strucprune_core.commands.tables import print_facts, print_heading

# Who waits less needs no figure.
_AT_ONCE_SECONDS = 10.0


def print_time_here(time: Mapping[str, Any]) -> None:
    """Print a time on this machine, with its phases."""
    from strucprune_core.plan.titles import phase_title

    print_heading("\nTime, on this machine")
    threads = f"{time['threads']} thread{'' if time['threads'] == 1 else 's'}"
    facts = {"in all": f"about {_span(time)}", "on": f"{time['device']}, {threads}"}
    phases = sorted(time["phases"].items(), key=lambda phase: -phase[1])
    facts |= {phase_title(name).lower(): figures.duration(each) for name, each in phases}
    print_facts(facts)


def print_times(times: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None) -> None:
    """Print a job's times on classes of workers, and when it would start."""
    if not times:
        return
    print_heading("\nTime, with one worker")
    facts = {f"on {each['worker_class']}": f"about {_span(each)}{_cost(each)}" for each in times}
    print_facts(facts if start is None else {**facts, "starts": starts(start)})


def starts(start: Mapping[str, Any]) -> str:
    """When a job starts: "in about 2 to 5 minutes"."""
    at_once = start["most_seconds"] < _AT_ONCE_SECONDS
    return "at once" if at_once else f"in about {_span(start)}"


def predicted(times: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What was predicted of a job, by class of workers, as facts."""
    if not times:
        return {}
    return {"predicted": ", ".join(f"{_span(each)} on {name}" for name, each in times.items())}


def _cost(time: Mapping[str, Any]) -> str:
    cost = time.get("cost")
    if cost is None:
        return ""
    least, most = (figures.number(cost[each], 2) for each in ("least", "most"))
    return f", {least} to {most} {cost['currency']}".rstrip()


def _span(times: Mapping[str, Any]) -> str:
    return figures.span(times["least_seconds"], times["most_seconds"])
