"""Every event that can happen has a title of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from api.event_titles import event_title
from api.jobs.codec import LUA
from api.jobs.state import JobState


@pytest.mark.parametrize(
    ("kind", "data", "title"),
    [
        ("state", {"state": "queued", "run": 1, "attempt": 0}, "Waits for a worker"),
        ("state", {"state": "running", "run": 1, "attempt": 2}, "Attempt 2 began"),
        (
            "state",
            {"state": "queued", "run": 3, "attempt": 0, "reason": "retried"},
            "To be run again, as run 3; waits for a worker",
        ),
        (
            "state",
            {"state": "failed", "attempt": 1, "reason": "deadline"},
            "Failed; its deadline passed",
        ),
        ("state", {"state": "failed", "attempt": 1, "reason": "settled"}, "Failed"),
        ("state", {"state": "dreaming"}, "dreaming"),
        (
            "progress",
            {"phase": "solving", "layers_done": 3, "layers_total": 30},
            "Pruning and repairing layers: 3 of 30",
        ),
        ("progress", {"phase": "evaluating", "layers_done": 0, "layers_total": 1}, "Evaluating"),
        ("workers", {"workers": 1}, "1 worker works on it"),
        ("workers", {"workers": 3}, "3 workers work on it"),
        ("layers", {"index": [4]}, "Results for layer 4"),
        ("layers", {"index": [4, 5]}, "Results for layers"),
        ("of-another-release", {}, "of-another-release"),
    ],
)
def test_a_title_says_what_happened(kind: str, data: dict[str, Any], title: str) -> None:
    assert event_title(kind, data) == title


@pytest.mark.parametrize("state", JobState)
def test_no_state_is_told_by_its_bare_name(state: JobState) -> None:
    """Whatever reason the ledger's scripts give for it."""
    lines = [line for path in LUA.glob("*.lua") for line in path.read_text().splitlines()]
    calls = [line for line in lines if "move(id" in line or "enter(id" in line]
    reasons = {"declined", *re.findall(r"'(\w*)'", " ".join(calls))}
    assert {"retry", "retried", "released", "worker_lost", "deadline", "settled"} <= reasons
    for reason in reasons:
        data = {"state": state, "reason": reason, "run": 1, "attempt": 1}
        title = event_title("state", data)
        assert title != state
        assert title[0].isupper()
