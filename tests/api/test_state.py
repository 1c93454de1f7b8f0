from __future__ import annotations

from api.jobs.state import HELD, TERMINAL, TRANSITIONS, JobState


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_terminal_states() -> None:
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == TERMINAL


def test_every_live_state_can_reach_an_end() -> None:
    for start in set(JobState) - TERMINAL:
        reached, frontier = {start}, {start}
        while frontier:
            frontier = {to for state in frontier for to in TRANSITIONS[state]} - reached
            reached |= frontier
        assert reached & TERMINAL, start


def test_only_a_worker_can_succeed() -> None:
    assert {state for state in JobState if JobState.SUCCEEDED in TRANSITIONS[state]} == HELD
