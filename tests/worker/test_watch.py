"""A real worker shows that it is alive, and a drain file ends it as SIGTERM does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.jobs.ledger import Ledger, connect
from embedded.processes import wait_until
from embedded.valkey import ValkeyServer
from tests.worker.conftest import Bench

ROOT = Path(__file__).parents[2]
StartWorker = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_worker(valkey_server: ValkeyServer, tmp_path: Path) -> Iterator[StartWorker]:
    started: list[subprocess.Popen[bytes]] = []
    settings = {
        "REDIS_URL": valkey_server.url,
        "STATE_URI": str(tmp_path),
        "HEARTBEAT_FILE": str(tmp_path / "heartbeat"),
        "DRAIN_FILE": str(tmp_path / "drain"),
    }

    def start() -> subprocess.Popen[bytes]:
        environment = {f"STRUCPRUNE_{name}": value for name, value in settings.items()}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker"],
                env={**os.environ, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def shown(ledger: Ledger) -> set[str]:
    return {worker.name for worker in ledger.workers()}


@pytest.mark.services
def test_a_worker_beats_until_its_drain_file_appears(
    start_worker: StartWorker, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    heartbeat, drain, log = (tmp_path / name for name in ("heartbeat", "drain", "log"))
    drain.touch()  # an earlier worker's
    worker = start_worker()
    wait_until(heartbeat.exists, "the worker beats")
    os.utime(heartbeat, (1.0, 1.0))
    wait_until(lambda: heartbeat.stat().st_mtime > 1.0, "the worker beats again")
    assert worker.poll() is None
    assert not drain.exists()
    ledger = connect(valkey_server.url)
    names = [name for name in shown(ledger) if name.endswith(f":{worker.pid}")]
    assert len(names) == 1
    drain.touch()
    assert worker.wait(timeout=30) == 0
    assert not {*names} & shown(ledger)
    ledger.close()
    assert "Warm shutdown" in log.read_text()
    assert "Cold shutdown" not in log.read_text()


def test_a_drain_file_that_stays_is_told(start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "drain").mkdir()  # cannot be unlinked
    assert start_worker().wait(timeout=30) == 1
    assert "STRUCPRUNE_DRAIN_FILE" in (tmp_path / "log").read_text()


def test_a_supervisor_beats_while_it_watches(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    settings = bench.settings.model_copy(update={"heartbeat_file": path})
    bench.settings = settings
    job_id = bench.submit()
    bench.once_running(job_id, lambda: bench.ledger.request_cancel(job_id))
    assert not path.exists()
    bench.run(job_id, "work")
    assert path.exists()
