"""When a queued job starts, and classes of workers: what is told, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from api.expected_start import ANSWER_SECONDS, ExpectedStart, expected_start
from api.jobs.ledger import CLASS_SECONDS, Ledger, LedgerUnavailable
from api.jobs.limits import RunningLimits
from api.jobs.record import HeldJob, Outlook, PredictedTime, QueuePlace, Times, WorkerRecord
from api.worker_classes import KEPT_SECONDS, WorkerClasses, classes_of
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.seconds import LEAST, MOST
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.rates import RATES
from tests.support.records import new_job

HUNDRED: Times = {"cpu": PredictedTime(seconds=100, least_seconds=50, most_seconds=200)}


def outlook(
    workers: int,
    ahead: int | None,
    held: Sequence[HeldJob] = (),
    waiting: Sequence[Times] = (),
    waits_for: Literal["turn", "limit", "rest"] = "turn",
) -> Outlook:
    return Outlook(QueuePlace(waits_for, workers, ahead), waiting, held)


def busy(eta_seconds: float | None, fraction: float = 0.5, predicted: Times = HUNDRED) -> HeldJob:
    return HeldJob(predicted, {"eta_seconds": eta_seconds, "fraction": fraction})


def test_a_free_worker_takes_the_next_job_at_once() -> None:
    assert expected_start(outlook(2, 0, [busy(1000)])) == ExpectedStart(0.0, ANSWER_SECONDS)


def test_the_next_job_waits_for_the_worker_that_is_done_first() -> None:
    found = expected_start(outlook(2, 0, [busy(1000), busy(300)]))
    assert found == ExpectedStart(LEAST * 300, MOST * 300 + ANSWER_SECONDS)


def test_jobs_ahead_go_to_whoever_is_free_first() -> None:
    # One worker is free at once and takes both jobs ahead; the other one is not done before that.
    found = expected_start(outlook(2, 2, [busy(1000)], [HUNDRED, HUNDRED]))
    assert found == ExpectedStart(100.0, 400.0 + ANSWER_SECONDS)
    # Two are free: each takes one.
    found = expected_start(outlook(2, 2, [], [HUNDRED, HUNDRED]))
    assert found == ExpectedStart(50.0, 200.0 + ANSWER_SECONDS)


def test_jobs_of_which_nothing_was_predicted_count_as_the_others() -> None:
    longer: Times = {
        "cpu": PredictedTime(seconds=300, least_seconds=150, most_seconds=600),
        "gpu": PredictedTime(seconds=100, least_seconds=50, most_seconds=200),
    }
    found = expected_start(outlook(1, 1, [], [{}, HUNDRED, longer]))
    assert found == ExpectedStart((50 + 100) / 2, (200 + 400) / 2 + ANSWER_SECONDS)


def test_a_job_that_has_not_said_how_long_it_takes_counts_by_its_prediction() -> None:
    assert expected_start(outlook(1, 0, [busy(None, 0.25)])) == ExpectedStart(
        0.75 * 50, 0.75 * 200 + ANSWER_SECONDS
    )
    assert expected_start(outlook(1, 0, [HeldJob(HUNDRED, None)])) == ExpectedStart(
        50.0, 200.0 + ANSWER_SECONDS
    )


@pytest.mark.parametrize(
    "unknown",
    [
        outlook(0, 0),
        outlook(2, None, waits_for="rest"),
        outlook(2, 3, [], [HUNDRED], waits_for="limit"),
        outlook(2, 1, [], [{}]),
        outlook(1, 0, [HeldJob({}, None)]),
    ],
)
def test_what_cannot_be_told_is_not_told(unknown: Outlook) -> None:
    assert expected_start(unknown) is None


def test_the_ledger_knows_what_workers_are_at(ledger: Ledger) -> None:
    ledger.note_worker("one:1", {"host": "one"})
    ledger.note_worker("two:1", {"host": "two"})
    for name in ("a1", "b1", "b2"):
        ledger.create(new_job(name, tenant=name[0], predicted=HUNDRED))
    claim: Any = claim_job(ledger, "a1", "w", 60)
    progress = {"eta_seconds": 12.0, "fraction": 0.5, "phase": "solving"}
    ledger.heartbeat("a1", claim.fence, 60, progress)
    found = ledger.outlook("b2", "", "normal", RunningLimits())
    assert found == Outlook(QueuePlace("turn", 2, 1), [HUNDRED], [HeldJob(HUNDRED, progress)])
    record = ledger.get("b2")
    assert record is not None
    assert record.predicted == HUNDRED


def worker(
    name: str, pool: str = "", rates: DeviceRates | None = RATES, **more: Any
) -> WorkerRecord:
    return WorkerRecord(name=name, pool=pool, rates=rates, started_at=0, seen_at=0, **more)


def test_classes_are_pools_or_devices() -> None:
    other = RATES.model_copy(update={"device": "another", "threads": 4})
    found = classes_of(
        [
            worker("a", "h200"),
            worker("b", "h200"),
            worker("c", "mixed"),
            worker("d", "mixed", other),
            worker("e", "", other),
            worker("f", "old", None),
        ]
    )
    assert [(each.name, each.pool, each.workers) for each in found] == [
        ("h200", "h200", 2),
        ("another, 4 threads", "", 1),
        ("mixed, a processor, 1 thread", "mixed", 1),
        ("mixed, another, 4 threads", "mixed", 1),
    ]


def test_a_class_stays_known_when_its_workers_are_gone(ledger: Ledger) -> None:
    other = RATES.model_copy(update={"device": "another"})
    for name, pool, rates in (("one", "big", RATES), ("two", "big", RATES), ("three", "", other)):
        ledger.note_worker(f"{name}:1", {"pool": pool, "rates": rates.model_dump_json()})
    ledger.note_worker("four:1", {"pool": "unmeasured"})
    for name in ("one", "two"):
        ledger.forget_worker(f"{name}:1")
    found = classes_of(ledger.workers(), ledger.past_classes())
    assert [(each.name, each.workers, each.rates) for each in found] == [
        ("another, 1 thread", 1, other),
        ("big", 0, RATES),
    ]
    advance(ledger, CLASS_SECONDS - 60)
    assert ("big", RATES) in ledger.past_classes()
    advance(ledger, 120)
    ledger.note_worker("three:1", {"pool": "", "rates": other.model_dump_json()})
    assert ledger.past_classes() == [("", other)]


def test_rates_of_a_class_are_medians() -> None:
    twice = RATES.model_copy(
        update={
            "products": {
                "float32": {size: 3 * rate for size, rate in RATES.products["float32"].items()}
            },
            "memory_bytes_per_second": 3 * RATES.memory_bytes_per_second,
        }
    )
    (found,) = classes_of(
        [
            worker("a", "p", read_bytes_per_second=5e6),
            worker("b", "p", twice),
            worker("c", "p", twice, read_bytes_per_second=7e6),
        ]
    )
    assert found.rates.products["float32"] == twice.products["float32"]
    assert found.rates.products["float64"] == RATES.products["float64"]
    assert found.rates.memory_bytes_per_second == twice.memory_bytes_per_second
    assert found.rates.read_bytes_per_second == 6e6


def test_classes_are_read_now_and_then() -> None:
    now, calls = 0.0, 0

    class Asked:
        def past_classes(self) -> list[tuple[str, DeviceRates]]:
            return []

        def workers(self) -> list[WorkerRecord]:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise LedgerUnavailable("no answer")
            return [worker("a", "p")]

    classes = WorkerClasses(Asked(), lambda: now)  # type: ignore[arg-type]
    assert [each.name for each in classes.all()] == ["p"]
    now = KEPT_SECONDS / 2
    assert [each.name for each in classes.all()] == ["p"]
    assert calls == 1
    now = 2 * KEPT_SECONDS
    assert classes.all() == []
    now = 4 * KEPT_SECONDS
    assert [each.name for each in classes.all()] == ["p"]
