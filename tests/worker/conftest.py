"""A worker's surroundings: a real ledger, a journal on disk, and a doorbell that is only noted."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from api.jobs.doorbell import Doorbell
from api.jobs.journal import Journal, JournalEntry
from api.jobs.ledger import Ledger, connect
from api.jobs.record import JobRecord
from api.jobs.state import JobState
from embedded.valkey import ValkeyServer
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.support.clock import ADVANCED_CLOCK
from worker.execution import Services, run_next
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain

FAKE_SOLVE = Path(__file__).parent / "fake_solve.py"


class NotedDoorbell(Doorbell):
    """Notes how often it was rung, and for which help."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.rung = 0
        self.helped: list[str] = []

    def ring(self) -> bool:
        self.rung += 1
        return True

    def ring_for_help(self, job_id: str, times: int) -> bool:
        self.helped += times * [job_id]
        return True


@dataclass
class Bench:
    """One worker to try out."""

    ledger: Ledger
    journal: Journal
    settings: Settings
    doorbell: NotedDoorbell = field(default_factory=NotedDoorbell)
    drain: Drain = field(default_factory=Drain)
    _threads: list[threading.Thread] = field(default_factory=list)

    def submit(self, scratch_bytes: int = 0, tenant: str = "t", **runtime: object) -> str:
        job_id = f"job-{uuid4().hex}"
        spec = JobSpec.model_validate(
            {
                "model": {"uri": "s3://bucket/model"},
                "output": {"uri_prefix": f"s3://bucket/{job_id}"},
                "pruning": {"sparsity": 0.3},
                "calibration": {"uri": "s3://bucket/text.txt"},
                "runtime": runtime,
            }
        )
        entry = JournalEntry(
            tenant=tenant,
            spec=spec,
            fingerprint="f",
            created_at=time.time(),
            scratch_bytes=scratch_bytes,
        )
        self.journal.write_spec(job_id, entry)
        self.ledger.create(entry.as_new_job(job_id))
        return job_id

    def run(self, job_id: str, behaviour: str, settings: Settings | None = None) -> JobRecord:
        """Answer one doorbell with a solve that behaves like that; this job afterwards.

        Jobs that rest after a failure are let go first, as a reconciler does after a while.
        """
        self.ledger.end_rests(0.0, 1000)
        services = Services(self.ledger, self.journal, self.doorbell)
        solve = (sys.executable, "-S", str(FAKE_SOLVE), behaviour)
        settings = settings or self.settings
        run_next(services, settings, self.drain, self.scratch(settings), solve)
        self.join()
        return self.job(job_id)

    def scratch(self, settings: Settings | None = None) -> Scratch:
        """Its place for temporary files, with short rests."""
        return Scratch((settings or self.settings).scratch_directory, self.drain, 0.01)

    def join(self) -> None:
        """Wait for what was to be done meanwhile."""
        for thread in self._threads:
            thread.join()

    def job(self, job_id: str) -> JobRecord:
        record = self.ledger.get(job_id)
        assert record is not None
        return record

    def forget_everything(self) -> None:
        """What FLUSHALL does, in this ledger's namespace."""
        client = self.ledger._client
        for key in client.scan_iter(self.ledger._key("*")):
            client.delete(key)

    def once_running(self, job_id: str, act: Callable[[], object]) -> None:
        """Do something from another thread as soon as the job has reported progress."""

        def running() -> bool:
            record = self.job(job_id)
            return record.state is JobState.RUNNING and record.progress is not None

        self.once(running, act)

    def once(self, condition: Callable[[], bool], act: Callable[[], object]) -> None:
        """Do something from another thread as soon as a condition holds."""

        def wait_and_act() -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if condition():
                    act()
                    return
                time.sleep(0.01)

        thread = threading.Thread(target=wait_and_act)
        thread.start()
        self._threads.append(thread)


@pytest.fixture
def bench(
    valkey_server: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    for name, value in {
        "REDIS_URL": valkey_server.url,
        "STATE_URI": str(tmp_path / "state"),
        "LEASE_SECONDS": "5",
        "HEARTBEAT_SECONDS": "0.1",
        "PROGRESS_SECONDS": "0.05",
        "GRACE_SECONDS": "1",
        "SIGNAL_SECONDS": "0.1",
        "STALL_SECONDS": "5",
        "SCRATCH_DIRECTORY": str(tmp_path),
    }.items():
        monkeypatch.setenv(f"STRUCPRUNE_{name}", value)
    (tmp_path / "state").mkdir()
    ledger = connect(valkey_server.url, f"worker-{uuid4().hex}", ADVANCED_CLOCK)
    bench = Bench(ledger, Journal(LocalStore(tmp_path / "state")), Settings())
    yield bench
    bench.doorbell.close()
    ledger.close()
