"""A Redis that has reached its `maxmemory`: workers wait, and what runs goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api.jobs.doorbell import Doorbell
from api.jobs.journal import Journal
from api.jobs.ledger import LedgerFull, connect
from api.jobs.state import JobState
from embedded.processes import ManagedProcess, wait_until
from embedded.valkey import ValkeyServer
from strucprune_core.storage.local import LocalStore
from tests.support.full_redis import fill, mend
from tests.worker.conftest import Bench
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
# A solve that goes on until a file is there, and a worker for it.
_WORKER = '''
import sys
from worker.__main__ import main
SOLVE = """
import json, pathlib, sys, time
sys.stdin.readline()
done = 0
while not pathlib.Path(sys.argv[1]).exists():
    progress = {"phase": "solving", "layers_done": done, "layers_total": 9, "fraction": 0.5,
        "eta_seconds": None}
    print(json.dumps({"type": "progress", "progress": progress}), flush=True)
    print(json.dumps({"type": "log", "at": 1.0, "level": "INFO", "message": str(done)}), flush=True)
    done += 1
    time.sleep(0.05)
print(json.dumps({"type": "result", "summary": {}}), flush=True)
"""
main((sys.executable, "-S", "-c", SOLVE, sys.argv.pop(1)))
'''
_LEASE_SECONDS = 4.0


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """What real workers are connected to."""
    with ValkeyServer(tmp_path / "valkey") as server:
        for name, value in {
            "REDIS_URL": server.url,
            "STATE_URI": str(tmp_path / "state"),
            "LEASE_SECONDS": str(_LEASE_SECONDS),
            "HEARTBEAT_SECONDS": "0.3",
            "PROGRESS_SECONDS": "0.1",
        }.items():
            monkeypatch.setenv(f"STRUCPRUNE_{name}", value)
        (tmp_path / "state").mkdir()
        ledger = connect(server.url)
        yield Bench(ledger, Journal(LocalStore(tmp_path / "state")), Settings())
        ledger.close()


def start(tmp_path: Path, name: str) -> ManagedProcess:
    beat = tmp_path / f"{name}.beat"
    worker = ManagedProcess(
        name,
        [sys.executable, "-c", _WORKER, str(tmp_path / "go")],
        log_directory=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STRUCPRUNE_HEARTBEAT_FILE": str(beat)},
    )
    wait_until(beat.exists, f"{name} is up")
    return worker


def test_workers_outlive_a_full_redis(fleet: Bench, tmp_path: Path) -> None:
    doorbell = Doorbell(fleet.settings.redis_url)
    workers = [start(tmp_path, "busy")]
    running = fleet.submit()
    assert doorbell.ring()
    wait_until(lambda: fleet.job(running).progress is not None, "the job runs")
    workers.append(start(tmp_path, "idle"))
    waiting = fleet.submit()
    fence = fleet.job(running).fence
    with redis.Redis.from_url(fleet.settings.redis_url) as client:
        # One doorbell waits already, so an idle worker has one to answer while Redis is full.
        fill(client)
        assert not doorbell.ring()
        with pytest.raises(LedgerFull):
            fleet.submit()
        began = time.monotonic()
        while time.monotonic() - began < 2 * _LEASE_SECONDS:
            assert fleet.ledger.requeue_expired(10) == []
            time.sleep(0.2)
        assert (fleet.job(running).state, fleet.job(running).fence) == (JobState.RUNNING, fence)
        # A worker that starts now waits, too.
        late = ManagedProcess(
            "late",
            [sys.executable, "-c", _WORKER, str(tmp_path / "go")],
            log_directory=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        workers.append(late)
        wait_until(lambda: "maxmemory" in late.log_tail(1000), "it meets the full Redis")
        time.sleep(2)
        assert all(worker.running for worker in workers)
        (tmp_path / "go").touch()
        wait_until(lambda: fleet.job(running).state is JobState.SUCCEEDED, "it ends all the same")
        mend(client)
    assert doorbell.ring()
    wait_until(lambda: fleet.job(waiting).state is JobState.SUCCEEDED, "the next one is done")
    assert all(worker.running for worker in workers)
    for worker in workers:
        worker.stop()
    doorbell.close()
    assert {fleet.job(job_id).attempt for job_id in (running, waiting)} == {1}


def test_an_idle_worker_starts_a_job_while_redis_is_full(fleet: Bench, tmp_path: Path) -> None:
    """Jobs that end are what can be removed."""
    doorbell = Doorbell(fleet.settings.redis_url)
    (tmp_path / "go").touch()
    job_id = fleet.submit()
    assert doorbell.ring()
    with redis.Redis.from_url(fleet.settings.redis_url) as client:
        # Its queues are declared by an earlier worker; a new one declares them again in vain.
        worker = start(tmp_path, "worker")
        wait_until(lambda: fleet.job(job_id).state is JobState.SUCCEEDED, "it works")
        second = fleet.submit()
        assert doorbell.ring()
        fill(client)
        wait_until(lambda: fleet.job(second).state is JobState.SUCCEEDED, "it works on")
        mend(client)
    worker.stop()
    doorbell.close()
