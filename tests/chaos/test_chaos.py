"""A short, seeded part of `make chaos`: each fault once."""

from __future__ import annotations

from pathlib import Path

import pytest

from strucprune_core.client import Event
from tests.chaos.faults import FAULTS
from tests.chaos.judge import ran_after_its_end
from tests.chaos.run import run

# On a machine with other work; alone it takes well below a minute.
_TIMEOUT_SECONDS = 600


@pytest.mark.services
@pytest.mark.timeout(_TIMEOUT_SECONDS)
def test_each_fault_once(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = run(
        tmp_path,
        seed="short",
        faults=len(FAULTS),
        kinds=["threshold"],
        at_once=3,
        workers=2,
        mean_pause_seconds=0.7,
        help_seconds=2.0,
        tell=lines.append,
    )
    assert outcome.verdict.lines() == [], "\n".join(lines)
    assert outcome.line == f"faults={len(FAULTS)} lost=0 duplicated=0 corrupted=0 stuck=0"
    # Customers wait where something is broken: more is not sure on a slow machine.
    assert outcome.jobs >= 3
    assert outcome.shared >= 1
    assert outcome.ends["succeeded"] > 0


def _events(*states: tuple[int, str]) -> list[Event]:
    return [
        Event.model_validate(
            {"id": f"{n}-0", "at": n, "type": "state", "data": {"run": run, "state": state}}
        )
        for n, (run, state) in enumerate(states)
    ]


def test_the_judge_sees_a_run_that_went_on() -> None:
    retried = _events((1, "queued"), (1, "running"), (1, "failed"), (2, "queued"), (2, "running"))
    assert ran_after_its_end(retried) is None
    twice = _events((1, "running"), (1, "succeeded"), (1, "running"), (1, "succeeded"))
    assert ran_after_its_end(twice) == 1
