"""A worker and its place for temporary files: one without it fails no job that others can do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from api.jobs.doorbell import Doorbell
from api.jobs.journal import Journal
from api.jobs.ledger import connect
from api.jobs.meters import HELP, SCRATCH_UNFIT, Tally, key_of
from api.jobs.record import Claim
from api.jobs.seats import LEADER
from api.jobs.state import JobState
from embedded.processes import ManagedProcess, wait_until
from embedded.valkey import ValkeyServer
from strucprune_core.errors import ScratchUnavailable
from strucprune_core.storage.local import LocalStore
from tests.support.claims import claim_job
from tests.support.small_disk import on_a_disk_of, seen_by
from tests.worker.conftest import FAKE_SOLVE, Bench
from worker.execution import Services
from worker.helping import help_job
from worker.scratch import Scratch, Unfit
from worker.settings import Settings
from worker.stop import Drain

ROOT = Path(__file__).parents[2]
MORE_THAN_ANY_DISK = 10**18


def unfit_looks(bench: Bench, reason: str) -> float:
    return bench.ledger.totals().get(key_of(SCRATCH_UNFIT, (reason,)), 0.0)


def elsewhere(bench: Bench, place: Path) -> Settings:
    """The bench's settings with scratch at another place."""
    return bench.settings.model_copy(update={"scratch_directory": place})


def test_a_worker_without_a_place_for_scratch_does_not_start(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "STRUCPRUNE_REDIS_URL": "redis://127.0.0.1:1/0",
        "STRUCPRUNE_STATE_URI": str(tmp_path),
        "STRUCPRUNE_SCRATCH_DIRECTORY": str(tmp_path / "nowhere"),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=environment,
    )
    assert ended.returncode == 1
    assert "STRUCPRUNE_SCRATCH_DIRECTORY" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_a_place_that_is_gone_takes_no_job(bench: Bench, tmp_path: Path) -> None:
    settings = elsewhere(bench, tmp_path / "nowhere")
    bench.once(lambda: unfit_looks(bench, "unwritable") >= 3, bench.drain.start)
    job_id = bench.submit(max_attempts=1)
    job = bench.run(job_id, "succeed", settings)
    assert (job.state, job.attempt, job.fence, job.error) == (JobState.QUEUED, 0, 0, None)
    assert bench.doorbell.rung == 1


def test_more_doorbells_than_jobs_are_not_handed_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that nobody takes none would ever be used up; the reconciler counts them."""
    job_id = bench.submit(MORE_THAN_ANY_DISK)
    monkeypatch.setattr(bench.doorbell, "waiting", lambda: 1)
    bench.run(job_id, "succeed")
    assert bench.doorbell.rung == 0
    bench.submit(MORE_THAN_ANY_DISK)
    bench.run(job_id, "succeed")
    assert bench.doorbell.rung == 1


def test_a_place_that_comes_back_ends_the_rest(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "later"
    bench.once(lambda: unfit_looks(bench, "unwritable") >= 2, place.mkdir)
    job_id = bench.submit()
    assert bench.run(job_id, "succeed", elsewhere(bench, place)).state is JobState.QUEUED
    assert bench.run(job_id, "succeed", elsewhere(bench, place)).state is JobState.SUCCEEDED


def test_a_doorbell_for_a_job_that_is_over_is_not_handed_on(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.submit()
    bench.run(job_id, "succeed")
    bench.run(job_id, "succeed", elsewhere(bench, tmp_path / "nowhere"))
    assert bench.doorbell.rung == 0
    assert unfit_looks(bench, "unwritable") == 0


def test_a_job_without_room_anywhere_says_so_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.submit(MORE_THAN_ANY_DISK, max_attempts=1)
    assert bench.run(job_id, "succeed").error is None  # another worker may be about to take it
    monkeypatch.setattr("worker.execution.EXPLAINED_AFTER_SECONDS", 0.0)
    for _ in range(3):
        job = bench.run(job_id, "succeed")
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("scratch_unavailable", True)
    assert f"{MORE_THAN_ANY_DISK:,} bytes" in job.error["message"]
    assert "STRUCPRUNE_SCRATCH_DIRECTORY" in job.error["remedy"]
    told = [e.data for e in bench.ledger.events(job_id) if e.data.get("reason") == "declined"]
    assert [event["error"] for event in told] == [job.error]
    assert unfit_looks(bench, "full") == 4
    assert bench.doorbell.rung == 4


def test_a_job_with_room_is_taken(bench: Bench) -> None:
    assert bench.run(bench.submit(4096), "succeed").state is JobState.SUCCEEDED


def test_a_disk_that_fails_in_the_middle_uses_up_no_attempt(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "lost"
    job_id = bench.submit(max_attempts=1)
    for _ in range(2):
        place.mkdir()
        job = bench.run(job_id, "lose-scratch", elsewhere(bench, place))
        assert (job.state, job.attempt) == (JobState.QUEUED, 0)
        assert job.error is not None
        assert job.error["code"] == "scratch_unavailable"
    assert bench.doorbell.rung == 2
    assert bench.run(job_id, "succeed").state is JobState.SUCCEEDED


def test_a_job_that_itself_takes_too_much_uses_up_its_attempts(bench: Bench) -> None:
    job_id = bench.submit(max_attempts=2)
    assert bench.run(job_id, "no-scratch").attempt == 1
    job = bench.run(job_id, "no-scratch")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "scratch_unavailable"


def test_a_directory_that_cannot_be_made_after_all_is_a_failure_for_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ScratchUnavailable("no space left on device")

    monkeypatch.setattr("worker.execution.scratch_directory", fail)
    job = bench.run(bench.submit(), "succeed")
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.QUEUED, "scratch_unavailable")


@pytest.fixture
def led(bench: Bench) -> str:
    """A job that another worker leads and that wants help."""
    job_id = bench.submit(max_workers=3)
    claim = claim_job(bench.ledger, job_id, "leader", 60)
    assert isinstance(claim, Claim)
    bench.ledger.seats.reserve_unit(job_id, claim.fence, LEADER, ["curve.0", "curve.1"])
    return job_id


def help_with(bench: Bench, job_id: str, behaviour: str, place: Path) -> None:
    services = Services(bench.ledger, bench.journal, bench.doorbell)
    settings = elsewhere(bench, place)
    solve = (sys.executable, "-S", str(FAKE_SOLVE), behaviour)
    help_job(job_id, services, settings, bench.drain, bench.scratch(settings), solve)


def test_a_worker_without_scratch_takes_no_seat(bench: Bench, led: str, tmp_path: Path) -> None:
    bench.once(lambda: unfit_looks(bench, "unwritable") >= 2, bench.drain.start)
    help_with(bench, led, "help", tmp_path / "nowhere")
    bench.join()
    assert bench.doorbell.helped == [led]
    assert not [event for event in bench.ledger.events(led) if event.type == "workers"]


def test_a_place_that_shows_more_room_than_may_be_taken(bench: Bench, tmp_path: Path) -> None:
    place = Scratch(tmp_path, bench.drain, most_bytes=10**6)
    assert place.free_bytes() == 10**6
    assert place.unfit(10**6) is None
    unfit = place.unfit(10**6 + 1)
    assert unfit is not None
    assert unfit.reason == "full"


def test_a_helper_that_loses_its_scratch_keeps_no_other_from_helping(
    bench: Bench, led: str, tmp_path: Path
) -> None:
    for _ in range(4):
        place = tmp_path / "lost"
        place.mkdir()
        help_with(bench, led, "lose-scratch", place)
    totals = bench.ledger.totals()
    assert (totals[key_of(HELP, ("done",))], key_of(HELP, ("failed",)) in totals) == (4.0, False)


class StoodStill:
    """The module `time`, when nothing but sleeping takes any."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


def test_rests_grow_until_a_job_is_taken(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StoodStill()
    monkeypatch.setattr("worker.scratch.time", clock)
    scratch = Scratch(tmp_path, Drain(), first_rest_seconds=5)
    full = Unfit("full", "no room")

    def rest() -> float:
        began = clock.monotonic()
        scratch.rest(full, Tally(bench.ledger))
        return clock.monotonic() - began

    first, second, third = rest(), rest(), rest()
    assert 5 <= first < 10
    assert 10 <= second < 20
    assert 20 <= third < 40
    scratch.fits()
    assert 5 <= rest() < 10


def test_a_drain_ends_a_rest(bench: Bench, tmp_path: Path) -> None:
    drain = Drain()
    drain.start()
    began = time.monotonic()
    Scratch(tmp_path, drain, 60.0).rest(Unfit("full", "no room"), Tally(bench.ledger))
    assert time.monotonic() - began < 5


# A real worker, with a solve that is none.
_WORKER = """
import sys
from worker.__main__ import main
main((sys.executable, "-S", sys.argv.pop(1), "write"))
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """What real workers are connected to."""
    with ValkeyServer(tmp_path / "valkey") as server:
        monkeypatch.setenv("STRUCPRUNE_REDIS_URL", server.url)
        monkeypatch.setenv("STRUCPRUNE_STATE_URI", str(tmp_path / "state"))
        (tmp_path / "state").mkdir()
        ledger = connect(server.url)
        yield Bench(ledger, Journal(LocalStore(tmp_path / "state")), Settings())
        ledger.close()


def test_a_worker_with_a_full_disk_fails_no_queue(
    fleet: Bench, tmp_path: Path, private_mounts_prefix: list[str]
) -> None:
    def start(name: str) -> ManagedProcess:
        place = tmp_path / name
        place.mkdir()
        environment = {
            **os.environ,
            "STRUCPRUNE_SCRATCH_DIRECTORY": str(place),
            "STRUCPRUNE_HEARTBEAT_FILE": str(tmp_path / f"{name}.beat"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", _WORKER, str(FAKE_SOLVE)]
        worker = ManagedProcess(
            name,
            on_a_disk_of(private_mounts_prefix, "64k", place, command),
            log_directory=tmp_path,
            env=environment,
        )
        wait_until((tmp_path / f"{name}.beat").exists, f"{name} is up")
        return worker

    doorbell = Doorbell(fleet.settings.redis_url)

    def submit() -> str:
        job_id = fleet.submit(max_attempts=1)
        doorbell.ring()
        return job_id

    sick = start("sick")
    filler = seen_by(sick.pid, tmp_path / "sick") / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    jobs = [submit() for _ in range(3)]
    wait_until(
        lambda: "scratch is unwritable" in sick.log_tail(1000), "it rests", timeout_seconds=60
    )
    assert [(fleet.job(j).state, fleet.job(j).attempt) for j in jobs] == 3 * [(JobState.QUEUED, 0)]

    def over(job_id: str) -> bool:
        return fleet.job(job_id).state is JobState.SUCCEEDED

    well = start("well")
    wait_until(lambda: all(map(over, jobs)), "the other did them")
    well.terminate()
    filler.unlink()
    last = submit()
    wait_until(lambda: over(last), "it works again")
    sick.stop()
    well.stop()
    doorbell.close()
    assert {fleet.job(job_id).attempt for job_id in (*jobs, last)} == {1}
