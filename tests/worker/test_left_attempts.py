"""A worker that dies with its solve for lack of memory: the next one knows from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.jobs.record import Claim, JobRecord, Refusal
from api.jobs.state import JobState
from strucprune_core.scratch.directories import PREFIX, sweep
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.worker.conftest import Bench
from worker.attempt_mark import AttemptMark, leave_mark, read_mark
from worker.execution import Services
from worker.left_attempts import conclude_attempt

BOOT = "c0ffee"


def machine(tmp_path: Path, kills: int | None, boot: str = BOOT) -> Path:
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (proc / "sys/kernel/random/boot_id").write_text(boot + "\n")
    (proc / "vmstat").write_text("" if kills is None else f"oom_kill {kills}\n")
    return proc


def marked(tmp_path: Path, kills: int | None) -> AttemptMark:
    directory = tmp_path / f"{PREFIX}left"
    directory.mkdir()
    leave_mark(directory, Claim("job-1", 7, 1), machine(tmp_path, kills))
    found: list[AttemptMark | None] = []
    sweep(tmp_path, lambda path: found.append(read_mark(path)))
    assert not directory.exists()
    (mark,) = found
    assert mark is not None
    return mark


@pytest.mark.parametrize(
    ("before", "after", "boot", "memory"),
    [
        (3, 4, BOOT, True),
        (3, 3, BOOT, False),  # somebody else's kill -9
        (3, 9, "another", False),
        (None, 4, BOOT, False),
        (3, None, BOOT, False),
    ],
)
def test_what_the_machine_says_of_an_attempt_that_was_left(
    tmp_path: Path, before: int | None, after: int | None, boot: str, memory: bool
) -> None:
    mark = marked(tmp_path, before)
    assert mark.out_of_memory(machine(tmp_path, after, boot)) is memory


def test_a_directory_without_a_mark(tmp_path: Path) -> None:
    assert read_mark(tmp_path) is None
    (tmp_path / "attempt.json").write_text("{")
    assert read_mark(tmp_path) is None


def left(bench: Bench, job_id: str) -> JobRecord:
    """Conclude the job's newest attempt as one that was left."""
    mark = AttemptMark(job_id=job_id, fence=bench.job(job_id).fence, boot=BOOT, kills=0)
    services = Services(bench.ledger, bench.journal, bench.doorbell)
    conclude_attempt(mark, services, bench.settings)
    return bench.job(job_id)


def claim(bench: Bench, job_id: str) -> Claim:
    taken = claim_job(bench.ledger, job_id, "w", 60)
    assert not isinstance(taken, Refusal)
    return taken


def test_the_next_attempt_needs_less_memory(bench: Bench) -> None:
    job_id = bench.submit(micro_batch_tokens=4096)
    claim(bench, job_id)
    job = left(bench, job_id)
    assert (job.state, job.plan) == (JobState.QUEUED, {"micro_batch_tokens": 2048})
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"


def test_the_second_time_is_the_last(bench: Bench) -> None:
    job_id = bench.submit()
    for state in (JobState.QUEUED, JobState.FAILED):
        claim(bench, job_id)
        assert left(bench, job_id).state is state
    outcome = bench.journal.read_outcome(job_id)
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["retryable"]) == ("out_of_memory", False)


def test_a_lease_that_expired_first(bench: Bench) -> None:
    job_id = bench.submit(micro_batch_tokens=4096)
    claim(bench, job_id)
    advance(bench.ledger, 61)
    assert bench.ledger.requeue_expired(10) == [job_id]
    job = left(bench, job_id)
    assert (job.state, job.plan) == (JobState.QUEUED, {"micro_batch_tokens": 2048})


def test_another_attempt_is_left_alone(bench: Bench) -> None:
    job_id = bench.submit()
    first = claim(bench, job_id)
    mark = AttemptMark(job_id=job_id, fence=first.fence, boot=BOOT, kills=0)
    bench.ledger.release(job_id, first.fence)
    claim(bench, job_id)
    conclude_attempt(mark, Services(bench.ledger, bench.journal, bench.doorbell), bench.settings)
    assert bench.job(job_id).state is JobState.RUNNING
    assert bench.job(job_id).plan is None
