"""The file's age tells the truth, and no trouble with it stops the work."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from api.jobs.heartbeat_file import HeartbeatFile
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.rebuild import rebuild
from api.reconciler import Reconciler, run
from strucprune_core.storage.local import LocalStore
from tests.support.records import journal_entry


def age_by_hand(path: Path) -> None:
    os.utime(path, (1.0, 1.0))


def test_a_beat_makes_the_file_young(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    now = [100.0]
    heartbeat = HeartbeatFile(path, every_seconds=5, clock=lambda: now[0])
    heartbeat.beat()
    age_by_hand(path)
    now[0] += 4.9
    heartbeat.beat()
    assert path.stat().st_mtime == 1.0  # too soon after the last one
    now[0] += 0.2
    heartbeat.beat()
    assert path.stat().st_mtime > 1.0


def test_without_a_file_nothing_is_written() -> None:
    HeartbeatFile(None).beat()


def test_an_unwritable_file_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HeartbeatFile(tmp_path / "missing" / "heartbeat").beat()
    assert "missing/heartbeat: No such file" in caplog.text


def test_a_long_rebuild_beats_for_each_job(journal: Journal, ledger: Ledger) -> None:
    for job_id in ("job_a", "job_b", "job_c"):
        journal.write_spec(job_id, journal_entry())
    beats: list[None] = []
    rebuild(journal, ledger, lambda uri: LocalStore(Path(uri)), lambda: beats.append(None))
    assert len(beats) == 3


def test_a_reconciler_beats_through_an_outage() -> None:
    stop = threading.Event()

    class Outage(Reconciler):
        def __init__(self) -> None:
            self.steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps == 3:
                stop.set()
            raise LedgerUnavailable("down")

    beats: list[None] = []
    run(Outage(), stop, 0.001, lambda: beats.append(None))
    assert len(beats) == 3
