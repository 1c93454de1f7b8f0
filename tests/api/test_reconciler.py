from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from api.jobs.doorbell import QUEUE, Doorbell
from api.jobs.journal import Journal, Outcome
from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.rebuild import restore
from api.jobs.record import Claim, Refusal
from api.jobs.seats import LEADER
from api.jobs.state import JobState
from api.reconciler import Reconciler, run
from strucprune_core.storage.open import open_store
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import journal_entry, new_job


@pytest.fixture
def doorbell(redis_url: str, flush: redis.Redis) -> Iterator[Doorbell]:
    doorbell = Doorbell(redis_url)
    yield doorbell
    doorbell.close()


@pytest.fixture
def reconciler(journal: Journal, ledger: Ledger, doorbell: Doorbell) -> Reconciler:
    return Reconciler(
        journal,
        ledger,
        doorbell,
        open_store=open_store,
        requeue_after_seconds=30,
        rebuild_every_seconds=3600,
    )


def submit(journal: Journal, ledger: Ledger) -> None:
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))


def state_of(ledger: Ledger) -> JobState | None:
    record = ledger.get("job_a")
    return record.state if record else None


def test_a_lost_ledger_is_rebuilt_and_rung_for(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    ledger.mark_intact()
    reconciler.step()
    journal.write_spec("job_a", journal_entry())
    reconciler.step()
    assert state_of(ledger) is None  # not yet due, and the ledger claims to be complete
    ledger._client.delete(ledger._key("intact"))
    reconciler.step()
    assert state_of(ledger) == JobState.QUEUED
    advance(ledger, 61)
    reconciler.step()
    assert doorbell.waiting() == 1


def test_fences_are_new_however_often_the_ledger_is_lost(
    journal: Journal, ledger: Ledger, flush: redis.Redis
) -> None:
    journal.write_spec("job_a", journal_entry())
    fences: list[int] = []
    for _ in range(5):
        restore(journal, ledger, "job_a")
        claim = claim_job(ledger, "job_a", "w", 60)
        assert isinstance(claim, Claim)
        fences.append(claim.fence)
        flush.flushdb()
    assert len(set(fences)) == len(fences)


def test_a_lost_doorbell_is_rung_again_but_not_piled_up(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    submit(journal, ledger)
    for _ in range(3):
        advance(ledger, 61)
        reconciler.step()
    assert doorbell.waiting() == 1


def test_help_is_rung_for_again_but_not_piled_up(
    reconciler: Reconciler, ledger: Ledger, doorbell: Doorbell
) -> None:
    ledger.create(new_job(max_workers=4))
    claim = claim_job(ledger, "job_a", "worker", 600)
    assert isinstance(claim, Claim)
    ledger.seats.reserve_unit("job_a", claim.fence, LEADER, ["curve.0", "curve.1", "curve.2"])
    for _ in range(3):
        advance(ledger, 61)
        reconciler.step()
    assert doorbell.waiting_for_help() == 2


def test_a_job_without_a_bell_is_rung_for_behind_a_backlog(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    """As after a retryable failure: its bell is used up, those of all others wait."""
    for job_id in ("job_a", "job_b", "job_c"):
        journal.write_spec(job_id, journal_entry())
        ledger.create(journal_entry().as_new_job(job_id))
    for _ in range(2):
        doorbell.ring()
    advance(ledger, 61)
    reconciler.step()
    assert doorbell.waiting() == 3
    advance(ledger, 61)
    reconciler.step()
    assert doorbell.waiting() == 3


def test_a_job_that_failed_for_now_rests_whatever_else_waits(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    submit(journal, ledger)
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    ledger.retry_later("job_a", claim.fence, {"code": "solve_crashed"})
    journal.write_spec("job_b", journal_entry())
    ledger.create(journal_entry().as_new_job("job_b"))
    doorbell.ring()
    reconciler._requeue_after_seconds = 60.0
    reconciler.step()
    assert (ledger.queued(), doorbell.waiting()) == (1, 1)
    assert isinstance(ledger.claim("w", 60).claim, Claim)
    assert ledger.claim("w", 60).claim is Refusal.NOTHING
    reconciler._requeue_after_seconds = 0.0
    reconciler.step()
    taken = ledger.claim("w", 60)
    assert taken.record is not None
    assert (taken.record.id, taken.record.attempt) == ("job_a", 2)


def test_jobs_that_an_earlier_release_has_queued_get_in_line(
    reconciler: Reconciler, journal: Journal, ledger: Ledger
) -> None:
    submit(journal, ledger)
    client, key = ledger._client, ledger._key
    client.delete(key("tenant", "acme", "line"), key("turns"))
    client.hdel(key("job", "job_a"), "lined_up_at")
    assert ledger.claim("w", 60).claim is Refusal.NOTHING
    advance(ledger, 61)
    reconciler.step()
    assert isinstance(ledger.claim("w", 60).claim, Claim)


def test_a_dead_workers_job_is_queued_and_rung_for(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    submit(journal, ledger)
    claim_job(ledger, "job_a", "w", 60)
    advance(ledger, 61)
    reconciler.step()
    assert state_of(ledger) == JobState.QUEUED
    assert doorbell.waiting() == 1


def test_a_damaged_document_holds_up_no_other_job(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    for job_id in ("job_a", "job_b"):
        journal.write_spec(job_id, journal_entry())
        ledger.create(journal_entry().as_new_job(job_id))
        claim_job(ledger, job_id, "w", 60)
    journal._store.put("jobs/job_a/outcome.json", b"")
    advance(ledger, 61)
    reconciler.step()
    record = ledger.get("job_b")
    assert record is not None
    assert record.state == JobState.QUEUED
    advance(ledger, 61)
    reconciler.step()
    assert doorbell.waiting() == 2


class _Down(Doorbell):
    """To a broker that is down; notes who was to be rung for."""

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1/0")
        self.tried: list[str] = []

    def ring(self) -> bool:
        self.tried.append("")
        return super().ring()

    def ring_for_help(self, job_id: str, times: int) -> bool:
        self.tried.append(job_id)
        return super().ring_for_help(job_id, times)


class _Counting(_Down):
    """The same, but it has said that nothing waits before it went down."""

    def waiting(self) -> int:
        return 0

    def waiting_for_help(self) -> int:
        return 0


@pytest.mark.parametrize("kind", [_Down, _Counting])
@pytest.mark.parametrize("happened", ["bells lost", "workers dead", "help wanted"])
def test_a_broker_that_is_down_is_not_waited_for_again_and_again(
    journal: Journal, ledger: Ledger, kind: type[_Down], happened: str
) -> None:
    """Each try may take seconds, and the other steps must go on."""
    doorbell, beats = kind(), 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    ledger.mark_intact()
    for number in range(10):
        ledger.create(new_job(f"job_{number}", max_workers=4))
        if happened == "workers dead":
            claim_job(ledger, f"job_{number}", "w", 60)
        elif happened == "help wanted":
            claim = claim_job(ledger, f"job_{number}", "w", 600)
            assert isinstance(claim, Claim)
            ledger.seats.reserve_unit(f"job_{number}", claim.fence, LEADER, ["curve.0", "curve.1"])
    advance(ledger, 61)
    reconciler = Reconciler(
        journal,
        ledger,
        doorbell,
        open_store=open_store,
        requeue_after_seconds=30,
        rebuild_every_seconds=3600,
        beat=beat,
    )
    reconciler._rebuild_at = time.monotonic() + 3600
    reconciler.step()
    assert len(doorbell.tried) <= 1
    if happened == "workers dead":
        assert ledger.queued() == 10
        assert beats >= 10
    reconciler.step()
    assert len(doorbell.tried) <= 2
    doorbell.close()


def test_a_worker_that_died_after_its_commit_has_finished(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    submit(journal, ledger)
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    outcome = Outcome(
        state=JobState.SUCCEEDED, summary={"x": 1}, fence=claim.fence, finished_at=5.0
    )
    journal.write_outcome("job_a", outcome)
    advance(ledger, 61)
    reconciler.step()
    record = ledger.get("job_a")
    assert record is not None
    assert (record.state, record.summary) == (JobState.SUCCEEDED, {"x": 1})
    assert doorbell.waiting() == 0


def test_a_zombies_commit_ends_the_requeued_job(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, flush: redis.Redis
) -> None:
    submit(journal, ledger)
    claim_job(ledger, "job_a", "w", 60)
    advance(ledger, 61)
    reconciler.step()
    flush.delete(QUEUE)  # a worker that answers the bell sees the outcome itself
    journal.write_outcome("job_a", Outcome(state=JobState.SUCCEEDED, fence=1, finished_at=5.0))
    advance(ledger, 61)
    reconciler.step()
    assert state_of(ledger) == JobState.SUCCEEDED


@pytest.mark.parametrize("cancelled", [True, False])
def test_an_end_that_no_worker_commits_is_journalled(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, cancelled: bool
) -> None:
    submit(journal, ledger)
    for _ in range(5):  # max_attempts of the entry
        claim_job(ledger, "job_a", "w", 60)
        if cancelled:
            ledger.request_cancel("job_a")
        advance(ledger, 61)
        reconciler.step()
    outcome = journal.read_outcome("job_a")
    assert outcome is not None
    assert outcome.state == (JobState.CANCELLED if cancelled else JobState.FAILED)
    assert outcome.state == state_of(ledger)
    assert (outcome.error is None) == cancelled


def test_an_outage_is_waited_out(reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    passes = 0

    def step() -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            stop.set()
        raise LedgerUnavailable("down")

    monkeypatch.setattr(reconciler, "step", step)
    run(reconciler, stop, 0.001)
    assert passes == 3


def test_an_overdue_job_is_ended_and_journalled(
    reconciler: Reconciler, journal: Journal, ledger: Ledger
) -> None:
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a").model_copy(update={"deadline_seconds": 30}))
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    ledger.release("job_a", claim.fence)
    advance(ledger, 61)
    reconciler.step()
    outcome = journal.read_outcome("job_a")
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.state, outcome.error["code"]) == (JobState.FAILED, "deadline_exceeded")


def test_a_blocked_job_is_rung_for_when_a_dead_worker_frees_its_place(
    reconciler: Reconciler, journal: Journal, ledger: Ledger, doorbell: Doorbell
) -> None:
    for job_id in ("job_a", "job_b"):
        journal.write_spec(job_id, journal_entry())
        ledger.create(journal_entry().as_new_job(job_id))
    claim_job(ledger, "job_a", "w", 60, 1)
    assert claim_job(ledger, "", "w", 60, 1) is Refusal.BLOCKED
    reconciler._requeue_after_seconds = 600.0
    ledger.mark_intact()
    advance(ledger, 61)
    reconciler.step()
    assert doorbell.waiting() == 1


@pytest.mark.parametrize("days", [None, 1.0])
def test_retention(
    journal: Journal, ledger: Ledger, doorbell: Doorbell, days: float | None
) -> None:
    old, young = time.time() - 25 * 3600, time.time() - 23 * 3600
    for job_id, at in (("job_old", old), ("job_young", young), ("job_live", None)):
        journal.write_spec(job_id, journal_entry())
        ledger.create(journal_entry().as_new_job(job_id))
        journal.workspace(job_id).put("units/x", b"x")
        if at is not None:
            outcome = Outcome(state=JobState.SUCCEEDED, finished_at=at)
            journal.write_outcome(job_id, outcome)
    Reconciler(
        journal,
        ledger,
        doorbell,
        open_store=open_store,
        retention_seconds=days and days * 24 * 3600,
        requeue_after_seconds=60,
        rebuild_every_seconds=3600,
    ).step()
    kept = {job.id for job in ledger.list("acme").jobs}
    assert kept == {"job_young", "job_live"} | (set() if days else {"job_old"})
    assert (journal.workspace("job_old").stat("units/x") is None) == (days is not None)
    assert journal.workspace("job_young").stat("units/x") is not None
