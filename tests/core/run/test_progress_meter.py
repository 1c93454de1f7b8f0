from __future__ import annotations

import time

import pytest

from strucprune_core.errors import Stopped
from strucprune_core.plan.graph import Unit
from strucprune_core.run import progress_meter
from strucprune_core.run.progress import NeverStop, Phase, Progress
from strucprune_core.run.progress_meter import ProgressMeter
from tests.core.jobs.tiny_job import StopAt

UNITS = [Unit("tokens", Phase.INSPECTING), Unit("report", Phase.COMMITTING)]
COSTS = {"tokens": 3.0, "report": 1.0}


@pytest.fixture
def seen() -> list[Progress]:
    return []


@pytest.fixture
def meter(seen: list[Progress]) -> ProgressMeter:
    meter = ProgressMeter(seen.append, NeverStop())
    meter.plan(UNITS, UNITS, COSTS)
    return meter


def finish(meter: ProgressMeter, *units: Unit) -> None:
    for unit in units:
        meter.begin(unit)
        meter.end(unit)


def test_units_count_by_their_cost(meter: ProgressMeter, seen: list[Progress]) -> None:
    meter.begin(UNITS[0])
    meter.tick(1, 3)
    assert seen[-1].fraction == pytest.approx(0.99 / 4)
    meter.end(UNITS[0])
    assert seen[-1].fraction == pytest.approx(0.99 * 3 / 4)
    assert (seen[-1].layers_done, seen[-1].layers_total) == (1, 1)


def test_the_time_left_is_predicted_and_then_corrected(
    seen: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    units = [Unit(f"solve.{number}", Phase.SOLVING) for number in range(10)]
    meter = ProgressMeter(seen.append, NeverStop())
    meter.plan(units, units, {unit.name: 20.0 for unit in units})
    meter.begin(units[0])
    assert seen[-1].eta_seconds == pytest.approx(200.0)  # as predicted
    for unit in units[:5]:  # Each takes half as long.
        meter.begin(unit)
        now += 10.0
        meter.end(unit)
    # 50 s for 100 s of work, and the prediction for a twentieth of the job, 10 s.
    assert seen[-1].eta_seconds == pytest.approx(100.0 * (50.0 + 10.0) / (100.0 + 10.0))
    # What was finished before does not count as done here.
    meter.plan(units, units[5:], {unit.name: 20.0 for unit in units})
    meter.begin(units[5])
    assert seen[-1].eta_seconds == pytest.approx(100.0)


def test_a_unit_that_is_being_stored_counts_as_computed(
    meter: ProgressMeter, seen: list[Progress]
) -> None:
    meter.begin(UNITS[0])
    meter.tick(1, 1)
    meter.begin(UNITS[1])
    assert seen[-1].fraction == pytest.approx(0.99 * 3 / 4)
    assert (seen[-1].phase, seen[-1].layers_done) == (Phase.COMMITTING, 0)
    meter.tick(1, 2)
    assert seen[-1].fraction == pytest.approx(0.99 * 3.5 / 4)
    meter.end(UNITS[0])
    assert (seen[-1].phase, seen[-1].layers_done) == (Phase.INSPECTING, 1)
    meter.end(UNITS[1])
    assert (seen[-1].phase, seen[-1].layers_done) == (Phase.COMMITTING, 1)
    assert seen[-1].fraction == pytest.approx(0.99)


def test_publishing_is_the_last_hundredth(meter: ProgressMeter, seen: list[Progress]) -> None:
    finish(meter, *UNITS)
    for done in (0, 50, 100):
        meter.publishing(done, 100)
    fractions = [progress.fraction for progress in seen[-3:]]
    assert fractions == sorted(fractions)
    assert fractions[0] == pytest.approx(0.99)
    assert 0.99 < fractions[1] < fractions[2] < 1.0
    assert seen[-2].eta_seconds is not None
    meter.publishing(0, 0)  # nothing to copy
    meter.finish()
    assert seen[-1].fraction == 1.0


def test_a_second_plan_does_not_go_back(meter: ProgressMeter, seen: list[Progress]) -> None:
    finish(meter, UNITS[0])
    before = seen[-1].fraction
    meter.plan(UNITS, UNITS, COSTS)  # what was done is lost
    finish(meter, *UNITS)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert seen[-2].fraction == pytest.approx(max(before, 0.99 * 3 / 4))
    assert (seen[-1].layers_done, seen[-1].layers_total) == (1, 1)


def test_signs_of_life_repeat_the_last_progress_but_not_all_the_time(
    meter: ProgressMeter, seen: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter.alive()
    assert seen == []
    meter.begin(UNITS[0])
    meter.alive()
    assert len(seen) == 1
    monkeypatch.setattr(progress_meter, "ALIVE_SECONDS", -1.0)
    meter.alive()
    meter.safe_point()
    assert seen == [seen[0]] * 3


def test_a_transfer_that_stands_still_gives_no_sign_of_life(
    meter: ProgressMeter, seen: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches must be able to tell that it hangs."""
    meter.begin(UNITS[0])
    monkeypatch.setattr(progress_meter, "ALIVE_SECONDS", -1.0)
    for transfer in (meter.storing, meter.fetching, lambda done: meter.publishing(done, 10)):
        before = len(seen)
        for done_bytes in (1, 1, 1, 2, 2, 0, 0):
            transfer(done_bytes)
        assert len(seen) - before == 3


def test_every_safe_point_can_stop_and_a_sign_of_life_cannot(seen: list[Progress]) -> None:
    for verb, arguments in (
        ("tick", (0, 1)),
        ("publishing", (0, 1)),
        ("safe_point", ()),
        ("fetching", (1,)),
    ):
        meter = ProgressMeter(seen.append, StopAt(1))
        meter.plan(UNITS, UNITS, COSTS)
        meter.alive()
        meter.storing(1)
        with pytest.raises(Stopped):
            getattr(meter, verb)(*arguments)
