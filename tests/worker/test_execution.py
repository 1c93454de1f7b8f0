"""What becomes of a job, for every way in which its solve can end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from api.jobs.journal import Outcome
from api.jobs.state import JobState
from strucprune_core.errors import StorageUnavailable
from tests.worker.conftest import Bench


def outcome_of(bench: Bench, job_id: str) -> Outcome | None:
    return bench.journal.read_outcome(job_id)


def test_success_is_committed_to_journal_and_ledger(bench: Bench) -> None:
    job_id = bench.submit()
    job = bench.run(job_id, "succeed")
    assert job.state is JobState.SUCCEEDED
    assert job.summary == {"sparsity": {"requested": 0.3, "reached": 0.3}}
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert (outcome.state, outcome.fence) == (JobState.SUCCEEDED, 1)
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


def test_a_withdrawn_pause_rings_again(bench: Bench) -> None:
    job_id = bench.submit()

    def pause_and_resume() -> None:
        bench.ledger.request_pause(job_id)
        time.sleep(0.3)
        bench.ledger.resume(job_id)

    bench.once_running(job_id, pause_and_resume)
    # Ends only by being killed, a second after the pause: the resume comes before.
    assert bench.run(job_id, "ignore-terminate").state is JobState.QUEUED
    assert bench.doorbell.rung == [job_id]


def test_a_cancel_of_a_pausing_job_is_journalled(bench: Bench) -> None:
    job_id = bench.submit()

    def pause_and_cancel() -> None:
        bench.ledger.request_pause(job_id)
        time.sleep(0.3)
        bench.ledger.request_cancel(job_id)

    bench.once_running(job_id, pause_and_cancel)
    assert bench.run(job_id, "ignore-terminate").state is JobState.CANCELLED
    outcome = outcome_of(bench, job_id)
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


def test_a_drain_gives_the_job_back_uncounted(bench: Bench) -> None:
    job_id = bench.submit()
    bench.once_running(job_id, bench.drain.start)
    job = bench.run(job_id, "work")
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert bench.doorbell.rung == [job_id]


@pytest.mark.parametrize("behaviour", ["stopped-by-another", "terminated-early"])
def test_a_solve_that_somebody_else_stops_is_given_back_uncounted(
    bench: Bench, behaviour: str
) -> None:
    """As by SIGTERM to a whole control group, which the solve may hear before we do."""
    job_id = bench.submit(max_attempts=1)
    job = bench.run(job_id, behaviour)
    assert (job.state, job.attempt, job.error) == (JobState.QUEUED, 0, None)
    assert bench.doorbell.rung == [job_id]


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
        ("killed", "out_of_memory"),
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


def test_the_deadline_ends_the_job(bench: Bench) -> None:
    job = bench.run(bench.submit(deadline_seconds=1), "work")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"


def test_a_worker_that_lost_its_lease_leaves_the_job_alone(bench: Bench) -> None:
    job_id = bench.submit()
    successor = []

    def take_away() -> None:
        bench.ledger.release(job_id, 1)
        successor.append(bench.ledger.claim(job_id, "successor", 60))

    bench.once_running(job_id, take_away)
    job = bench.run(job_id, "finish-when-terminated")
    assert successor[0] is not None
    assert (job.state, job.fence, job.lease_owner) == (JobState.RUNNING, 2, "successor")
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
        assert bench.doorbell.rung == []  # the reconciler will, after a while
    job = bench.run(job_id, "succeed")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_no_scratch_directory_is_a_failure_for_now(bench: Bench, tmp_path: Path) -> None:
    settings = bench.settings.model_copy(update={"scratch_directory": tmp_path / "nowhere"})
    job = bench.run(bench.submit(), "succeed", settings)
    assert job.state is JobState.QUEUED
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("scratch_unavailable", True)
    assert "No such file" in job.error["message"]
    assert str(tmp_path) not in job.error["message"]


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
