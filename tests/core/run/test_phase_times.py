"""Times by phase: what finished units took, beside what they were predicted to take."""

from __future__ import annotations

from strucprune_core.plan.graph import Unit
from strucprune_core.run.manifest import Manifest
from strucprune_core.run.phase_times import phase_times
from strucprune_core.run.progress import Phase


class Finished:
    """These units took so long; no others are finished."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def manifest(self, unit: str) -> Manifest | None:
        seconds = self._seconds.get(unit)
        return None if seconds is None else Manifest(unit, {}, {}, seconds, 0, None)


def test_phases_have_both_times() -> None:
    units = [
        Unit("tokens", Phase.CALIBRATING),
        Unit("capture.0", Phase.CALIBRATING),
        Unit("capture.1", Phase.CALIBRATING),
        Unit("solve.0@try1", Phase.SOLVING),
        Unit("solve.0", Phase.SOLVING),
        Unit("search.1", Phase.ALLOCATING),
        Unit("report", Phase.COMMITTING),
    ]
    taken = {"tokens": 1.0, "capture.0": 3.0, "solve.0@try1": 5.0, "solve.0": 7.0, "search.1": 0.5}
    predicted = {"tokens": 2.0, "capture.0": 4.0, "capture.1": 4.0, "solve.0": 6.0, "report": 1.0}
    found = phase_times(units, Finished(taken), predicted)
    assert [(each.name, each.seconds, each.predicted_seconds) for each in found] == [
        ("calibrating", 4.0, 6.0),  # of what is finished
        ("allocating", 0.5, 0.0),
        ("solving", 12.0, 12.0),  # The try, too.
    ]
