"""The order of test files: places that `tests.support.schedule` names exist, the rest is last."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support import schedule

ROOT = Path(__file__).parents[2]


def test_every_place_has_tests() -> None:
    for place in schedule.FIRST:
        path = ROOT / place
        assert path.is_file() or (place.endswith("/") and list(path.rglob("test_*.py"))), place


def test_slow_places_come_first_and_files_stay_whole() -> None:
    names = [
        "tests/api/test_a.py::one",
        "tests/api/test_a.py::two",
        "tests/core/jobs/test_b.py::one",
        "tests/core/jobs/test_b.py::two",
        "tests/integration/test_c.py::one",
        "tests/worker/test_d.py::one",
    ]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    ordered = [item.nodeid for item in schedule.started_first(items)]
    assert ordered == [names[4], names[2], names[3], names[5], names[0], names[1]]


def test_what_shares_services_is_one_unit_of_work() -> None:
    split = schedule.Scheduler._split_scope
    scheduler: Any = object.__new__(schedule.Scheduler)
    files = ["tests/integration/test_a.py", "tests/integration/test_b.py", schedule.TOGETHER[1]]
    units = {split(scheduler, f"{file}::test_x[a::b]") for file in files}
    assert len(units) == 1
    assert split(scheduler, "tests/api/test_a.py::test_x[a::b]") == "tests/api/test_a.py"


def test_there_is_more_than_one_process() -> None:
    assert 2 <= schedule.worker_count() <= schedule.MOST_WORKERS
