"""What becomes of a job, for every way in which its solve can end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.jobs.journal import Outcome
from api.jobs.ledger import LedgerUnavailable
from api.jobs.limits import TenantLimits
from api.jobs.meters import (
    ATTEMPTS,
    BYTES_MOVED,
    DUPLICATES,
    ENDED,
    LEASES_LOST,
    PEAK_BYTES,
    UNIT_SECONDS,
    Meter,
    key_of,
)
from api.jobs.record import Claim, ClaimResult, JobRecord, Refusal
from api.jobs.sequel import retry
from api.jobs.state import JobState
from strucprune_core.errors import StorageUnavailable
from tests.support.claims import claim_job
from tests.worker.conftest import Bench
from worker.execution import Services, run_next
from worker.stalls import after_stall


def outcome_of(bench: Bench, job_id: str) -> Outcome | None:
    return bench.journal.read_outcome(job_id)


def test_success_is_committed_to_journal_and_ledger(bench: Bench) -> None:
    job_id = bench.submit()
    job = bench.run(job_id, "succeed")
    assert job.state is JobState.SUCCEEDED
    assert job.summary == {"sparsity": {"requested": 0.3, "reached": 0.3}}
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert (outcome.state, outcome.fence) == (JobState.SUCCEEDED, job.fence)
    assert outcome.summary == job.summary


def test_the_solve_gets_spec_workspace_and_scratch(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.submit()
    summary = bench.run(job_id, "echo").summary
    assert summary is not None
    request = summary["request"]
    assert request["job_id"] == job_id
    assert request["spec"]["pruning"]["sparsity"] == 0.3
    assert request["workspace_uri"] == bench.journal.workspace(job_id).uri
    assert summary["scratch"] == []
    assert not Path(request["scratch"]).exists()


def test_what_libraries_print_does_no_harm(bench: Bench) -> None:
    assert bench.run(bench.submit(), "babble").state is JobState.SUCCEEDED


def test_progress_reaches_the_job(bench: Bench) -> None:
    job_id = bench.submit()
    seen = []

    def note() -> None:
        seen.append(bench.job(job_id).progress)
        bench.ledger.request_cancel(job_id)

    bench.once_running(job_id, note)
    bench.run(job_id, "work")
    assert seen[0] is not None
    assert seen[0]["phase"] == "solving"


def test_a_doorbell_for_a_finished_job_is_harmless(bench: Bench) -> None:
    job_id = bench.submit()
    first = bench.run(job_id, "succeed")
    assert bench.run(job_id, "fail") == first


def test_cancel(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_cancel(job_id))
    assert bench.run(job_id, "work").state is JobState.CANCELLED
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


def test_a_solve_that_ignores_the_cancel_is_killed(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_cancel(job_id))
    began = time.monotonic()
    assert bench.run(job_id, "ignore-terminate").state is JobState.CANCELLED
    assert time.monotonic() - began < 10


def test_a_result_beats_a_cancel(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_cancel(job_id))
    assert bench.run(job_id, "finish-when-terminated").state is JobState.SUCCEEDED


def test_pause_then_resume(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_pause(job_id))
    paused = bench.run(job_id, "work")
    assert (paused.state, paused.attempt) == (JobState.PAUSED, 0)
    assert outcome_of(bench, job_id) is None
    bench.ledger.resume(job_id)
    assert bench.run(job_id, "succeed").state is JobState.SUCCEEDED


@pytest.fixture
def stopping(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Whether a supervisor has told its solve to stop."""
    caplog.set_level(logging.INFO, "worker.supervision")
    return lambda: "stopping solve" in caplog.text


def run_paused_then(
    bench: Bench, job_id: str, stopping: Callable[[], bool], act: Callable[[str], object], go: Path
) -> JobRecord:
    """Run a job, pause it, and do something to it while its solve comes to a stop."""
    settings = bench.settings.model_copy(update={"grace_seconds": 60.0})

    def act_and_let_stop() -> None:
        act(job_id)
        go.touch()

    bench.once_running(job_id, lambda: bench.ledger.request_pause(job_id))
    bench.once(stopping, act_and_let_stop)
    return bench.run(job_id, f"stop-once:{go}", settings)


def test_a_withdrawn_pause_rings_again(
    bench: Bench, stopping: Callable[[], bool], tmp_path: Path
) -> None:
    job_id = bench.submit()
    job = run_paused_then(bench, job_id, stopping, bench.ledger.resume, tmp_path / "go")
    assert job.state is JobState.QUEUED
    assert bench.doorbell.rung == 1


def test_a_cancel_of_a_pausing_job_is_journalled(
    bench: Bench, stopping: Callable[[], bool], tmp_path: Path
) -> None:
    job_id = bench.submit()
    job = run_paused_then(bench, job_id, stopping, bench.ledger.request_cancel, tmp_path / "go")
    assert job.state is JobState.CANCELLED
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


def test_a_drain_gives_the_job_back_uncounted(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, bench.drain.start)
    job = bench.run(job_id, "work")
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert bench.doorbell.rung == 1


@pytest.mark.parametrize("behaviour", ["stopped-by-another", "terminated-early"])
def test_a_solve_that_somebody_else_stops_is_given_back_uncounted(
    bench: Bench, behaviour: str
) -> None:
    """As by SIGTERM to a whole control group, which the solve may hear before we do."""
    job_id = bench.submit(max_attempts=1)
    job = bench.run(job_id, behaviour)
    assert (job.state, job.attempt, job.error) == (JobState.QUEUED, 0, None)
    assert bench.doorbell.rung == 1


def test_a_draining_worker_takes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    bench.drain.start()
    assert bench.run(job_id, "succeed").state is JobState.QUEUED


def test_a_final_failure_ends_the_job(bench: Bench) -> None:
    job_id = bench.submit()
    job = bench.run(job_id, "fail")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "invalid_checkpoint"
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.error == job.error


def test_a_final_failure_beats_a_pause(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_pause(job_id))
    assert bench.run(job_id, "fail-when-terminated").state is JobState.FAILED


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("fail-for-now", "storage_unavailable"),
        ("exit", "solve_crashed"),
        ("killed", "solve_crashed"),
    ],
)
def test_a_retryable_failure_uses_up_the_attempts(bench: Bench, behaviour: str, code: str) -> None:
    job_id = bench.submit(max_attempts=2)
    first = bench.run(job_id, behaviour)
    assert first.error is not None
    assert (first.state, first.attempt, first.error["code"]) == (JobState.QUEUED, 1, code)
    assert outcome_of(bench, job_id) is None
    second = bench.run(job_id, behaviour)
    assert (second.state, second.attempt) == (JobState.FAILED, 2)
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["code"] == code


def test_a_crash_names_the_phase(bench: Bench) -> None:
    job = bench.run(bench.submit(), "exit")
    assert job.error is not None
    assert job.error["phase"] == "solving"
    assert "status 3" in job.error["message"]


def test_a_hung_solve_is_killed(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"stall_seconds": 0.5})
    job = bench.run(bench.submit(), "hang", settings)
    assert job.state is JobState.QUEUED
    assert job.error is not None
    assert job.error["code"] == "solve_stalled"


def test_a_job_that_stalls_at_the_same_place_fails_soon(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"stall_seconds": 0.5})
    job_id = bench.submit(max_attempts=20)
    states = [bench.run(job_id, "hang", settings).state for _ in range(3)]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.FAILED]
    error = bench.job(job_id).error
    assert error is not None
    assert (error["code"], error["retryable"]) == ("solve_stalled", False)


def test_a_job_that_gets_further_may_stall_again() -> None:
    plan: dict[str, Any] | None = {"micro_batch_tokens": 7}
    for layer in range(9):
        plan = after_stall(plan, {"phase": "solving", "layers_done": layer})
        assert plan is not None
        assert (plan["stalls"], plan["micro_batch_tokens"]) == (1, 7)


def test_the_deadline_ends_the_job(bench: Bench) -> None:
    job = bench.run(bench.submit(deadline_seconds=1), "work")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"


def test_a_worker_that_lost_its_lease_leaves_the_job_alone(bench: Bench) -> None:
    job_id = bench.submit()
    successor: list[Claim | Refusal] = []

    def take_away() -> None:
        bench.ledger.release(job_id, bench.job(job_id).fence)
        successor.append(claim_job(bench.ledger, job_id, "successor", 60))

    bench.once_running(job_id, take_away)
    job = bench.run(job_id, "finish-when-terminated")
    assert isinstance(successor[0], Claim)
    assert (job.state, job.lease_owner) == (JobState.RUNNING, "successor")
    assert job.fence == successor[0].fence
    assert total(bench, LEASES_LOST, "worker") == 1
    assert outcome_of(bench, job_id) is None


def test_a_committed_outcome_is_only_copied(bench: Bench) -> None:
    job_id = bench.submit()
    earlier = Outcome(state=JobState.SUCCEEDED, summary={"by": "a dead worker"}, finished_at=1.0)
    bench.journal.write_outcome(job_id, earlier)
    job = bench.run(job_id, "fail")
    assert (job.state, job.summary) == (JobState.SUCCEEDED, {"by": "a dead worker"})


def test_a_journal_that_is_down_uses_up_no_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("down")

    job_id = bench.submit()
    with monkeypatch.context() as outage:
        outage.setattr(bench.journal, "read_outcome", fail)
        for _ in range(5):
            job = bench.run(job_id, "succeed")
            assert (job.state, job.attempt) == (JobState.QUEUED, 0)
        assert bench.doorbell.rung == 0  # the reconciler will, after a while
    job = bench.run(job_id, "succeed")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_an_outage_just_after_the_claim_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim brings all that the worker has to know."""
    claim, get = bench.ledger.claim, bench.ledger.get

    def fail(job_id: str) -> JobRecord | None:
        monkeypatch.setattr(bench.ledger, "get", get)
        raise LedgerUnavailable("down")

    def claim_and_break(*args: Any) -> ClaimResult:
        monkeypatch.setattr(bench.ledger, "get", fail)
        return claim(*args)

    monkeypatch.setattr(bench.ledger, "claim", claim_and_break)
    job = bench.run(bench.submit(), "succeed")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_what_nobody_foresaw_is_a_failure_for_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("worker.execution.SolveProcess", fail)
    job = bench.run(bench.submit(), "succeed")
    assert job.state is JobState.QUEUED
    assert job.error is not None
    assert job.error["code"] == "worker_failed"
    assert "secret" not in job.error["message"]
    assert "secret detail" in caplog.text


def total(bench: Bench, meter: Meter, *labels: str, part: str = "") -> float:
    return bench.ledger.totals().get(key_of(meter, labels, part), 0.0)


def test_what_workers_do_is_counted(bench: Bench) -> None:
    job_id = bench.submit()
    bench.run(job_id, "succeed")
    bench.run(job_id, "succeed")
    bench.run(bench.submit(), "fail")
    assert total(bench, ATTEMPTS) == 2
    assert total(bench, DUPLICATES) == 1
    assert total(bench, ENDED, "succeeded", "") == 1
    assert total(bench, ENDED, "failed", "invalid_checkpoint") == 1
    assert total(bench, UNIT_SECONDS, "curve", part="le=5.0") == 1
    assert total(bench, UNIT_SECONDS, "curve", part="sum") == 2.5
    assert total(bench, PEAK_BYTES, "host", part="sum") == 3 * 2**30
    assert total(bench, BYTES_MOVED, "worker") == 10
    assert total(bench, BYTES_MOVED, "store") == 4


PATIENT = {"lease_seconds": 60.0, "heartbeat_seconds": 30.0, "progress_seconds": 30.0}


@pytest.mark.parametrize(
    ("ask", "state"),
    [("request_cancel", JobState.CANCELLED), ("request_pause", JobState.PAUSED)],
)
def test_a_stop_is_heard_long_before_the_next_heartbeat(
    bench: Bench, ask: str, state: JobState
) -> None:
    """Also while the solve says nothing, as inside a long unit."""
    job_id = bench.submit()
    asked: list[float] = []

    def stop() -> None:
        getattr(bench.ledger, ask)(job_id)
        asked.append(time.monotonic())

    settings = bench.settings.model_copy(update={**PATIENT, "progress_seconds": 0.05})
    bench.once_running(job_id, stop)
    assert bench.run(job_id, "silent", settings).state is state
    assert time.monotonic() - asked[0] < PATIENT["heartbeat_seconds"] / 2


def test_a_cancelled_solve_that_is_deaf_is_not_waited_for(bench: Bench) -> None:
    job_id = bench.submit()
    settings = bench.settings.model_copy(
        update={"grace_seconds": 60.0, "cancel_grace_seconds": 0.3}
    )
    began = time.monotonic()
    bench.once_running(job_id, lambda: bench.ledger.request_cancel(job_id))
    assert bench.run(job_id, "deaf", settings).state is JobState.CANCELLED
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("first", ["pause", "drain"])
def test_a_cancel_is_not_kept_waiting_by_an_earlier_stop(
    bench: Bench, stopping: Callable[[], bool], first: str
) -> None:
    job_id = bench.submit()
    settings = bench.settings.model_copy(
        update={"grace_seconds": 60.0, "cancel_grace_seconds": 0.3}
    )

    def stop() -> None:
        if first == "pause":
            bench.ledger.request_pause(job_id)
        else:
            bench.drain.start()

    began = time.monotonic()
    bench.once_running(job_id, stop)
    bench.once(stopping, lambda: bench.ledger.request_cancel(job_id))
    assert bench.run(job_id, "deaf", settings).state is JobState.CANCELLED
    assert time.monotonic() - began < 20
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


def test_out_of_memory_is_tried_again_once_with_a_smaller_plan(bench: Bench) -> None:
    job_id = bench.submit(micro_batch_tokens=4096, max_attempts=5)
    first = bench.run(job_id, "out-of-memory")
    assert (first.state, first.plan) == (JobState.QUEUED, {"micro_batch_tokens": 2048})
    second = bench.run(job_id, "out-of-memory")
    assert second.state is JobState.FAILED
    assert second.error is not None
    assert (second.error["code"], second.error["retryable"]) == ("out_of_memory", False)
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.error == second.error


def test_the_smaller_plan_is_what_the_solve_gets(bench: Bench) -> None:
    job_id = bench.submit(micro_batch_tokens=4096)
    bench.run(job_id, "out-of-memory")
    summary = bench.run(job_id, "echo").summary
    assert summary is not None
    assert summary["request"]["spec"]["runtime"]["micro_batch_tokens"] == 2048


def test_a_retried_job_commits_its_second_run(bench: Bench) -> None:
    job_id = bench.submit()
    assert retry(bench.journal, bench.ledger, bench.run(job_id, "fail"))
    job = bench.run(job_id, "succeed")
    assert (job.state, job.run) == (JobState.SUCCEEDED, 2)
    outcomes = [bench.journal.read_outcome(job_id, run) for run in (1, 2)]
    assert [outcome and outcome.state for outcome in outcomes] == ["failed", "succeeded"]


def test_what_the_solve_logs_is_kept(bench: Bench) -> None:
    job_id = bench.submit()
    bench.run(job_id, "log")
    bench.run(job_id, "log")
    lines = bench.ledger.logs(job_id)
    assert [(line.attempt, line.message) for line in lines] == [
        (attempt, f"solve.{number} finished") for attempt in (1, 2) for number in range(3)
    ]
    assert (lines[1].at, lines[1].level, lines[1].run) == (1001.0, "INFO", 1)
    assert bench.ledger.logs(job_id, after=lines[3].id) == lines[4:]
    # A worker that has lost the job is not heard.
    assert not bench.ledger.append_logs(job_id, bench.job(job_id).fence, [{"message": "x"}])


def test_a_tenant_at_its_limit_waits_for_its_own_jobs(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"limits": TenantLimits(running_jobs=1)})
    first, second = bench.submit(), bench.submit()

    def let_second_try() -> None:
        services = Services(bench.ledger, bench.journal, bench.doorbell)
        run_next(services, settings, bench.drain, bench.scratch())
        bench.ledger.request_cancel(first)

    bench.once_running(first, let_second_try)
    assert bench.run(first, "work", settings).state is JobState.CANCELLED
    assert bench.job(second).state is JobState.QUEUED
    assert bench.doorbell.rung == 1
    assert bench.run(second, "succeed", settings).state is JobState.SUCCEEDED


def layers_told(bench: Bench, job_id: str) -> list[dict[str, Any]]:
    return [event.data for event in bench.ledger.events(job_id) if event.type == "layers"]


def test_what_is_found_out_about_layers_is_told_while_the_job_runs(bench: Bench) -> None:
    job_id = bench.submit()
    # Its progress is news all the time: heartbeats leave no pause for anything else.
    patience_ends = time.monotonic() + 5
    told: list[dict[str, Any]] = []

    def stop() -> None:
        told.extend(layers_told(bench, job_id))
        bench.ledger.request_cancel(job_id)

    bench.once(
        lambda: len(layers_told(bench, job_id)) == 2 or time.monotonic() > patience_ends, stop
    )
    assert bench.run(job_id, "tell-layers").state is JobState.CANCELLED
    assert told == [
        {"index": [0, 1], "width_after": [5, 7]},
        {"index": [1], "reconstruction_error": [0.25]},
    ]


def test_what_a_solve_that_fails_has_found_out_is_told(bench: Bench) -> None:
    job_id = bench.submit()
    assert bench.run(job_id, "tell-layers-and-fail").state is JobState.QUEUED
    assert layers_told(bench, job_id) == [{"index": [0], "energy": [0.5]}]
