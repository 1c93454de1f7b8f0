"""What operators see of a worker while it has a job, and afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import WorkerRecord
from tests.support.rates import RATES
from tests.worker.conftest import Bench
from worker.presence import EVERY_SECONDS, Presence, own_name


def test_a_worker_shows_its_job_while_it_has_one(bench: Bench) -> None:
    Presence(bench.ledger, own_name()).introduce(bench.settings)
    job_id = bench.submit()
    seen: list[WorkerRecord] = []

    def look_and_cancel() -> None:
        seen.extend(bench.ledger.workers())
        bench.ledger.request_cancel(job_id)

    bench.once_running(job_id, look_and_cancel)
    bench.run(job_id, "work")
    (worker,) = seen
    assert worker.name == f"{socket.gethostname()}:{os.getpid()}"
    assert (worker.job_id, worker.part, worker.phase) == (job_id, "lead", "solving")
    assert worker.unit == "solve.7"
    (idle,) = bench.ledger.workers()
    assert (idle.name, idle.job_id, idle.unit) == (worker.name, None, None)
    assert (idle.device, idle.threads) == ("a device", 3)


def test_it_introduces_itself_now_and_then(bench: Bench) -> None:
    told: list[Mapping[str, str]] = []

    class Noted(Ledger):
        def note_worker(self, name: str, fields: Mapping[str, str]) -> None:
            told.append(fields)
            raise LedgerUnavailable("no answer")  # which must not end the worker

    times = [0.0, EVERY_SECONDS / 2, EVERY_SECONDS, EVERY_SECONDS * 1.5]
    presence = Presence(Noted(bench.ledger._client), "one:1", iter(times).__next__)
    settings = bench.settings.model_copy(update={"pool": "h200"})
    for _ in times:
        presence.introduce(settings)
    assert [fields["pool"] for fields in told] == ["h200", "h200"]
    assert "rates" not in told[0]


def test_a_worker_shows_how_fast_its_device_and_its_storage_are(bench: Bench) -> None:
    presence = Presence(bench.ledger, "one:1")
    presence.introduce(bench.settings, RATES)
    (worker,) = bench.ledger.workers()
    assert (worker.rates, worker.read_bytes_per_second) == (RATES, None)
    presence.reads(12345678.9)
    (worker,) = bench.ledger.workers()
    assert (worker.rates, worker.read_bytes_per_second) == (RATES, 12345679.0)
