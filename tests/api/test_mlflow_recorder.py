"""Which ended jobs are logged to MLflow, and when: each once, in spite of outages and deaths."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from api.jobs.journal import Journal, Sequel
from api.jobs.ledger import Ledger
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.mlflow import recorder as module
from api.mlflow.content import RunContent
from api.mlflow.marks import Marks
from api.mlflow.recorder import Recorder, run
from api.mlflow.server import MlflowServer, NotLogged
from api.reconciler import _recorder
from api.services import Services
from api.settings import Settings
from strucprune_core.errors import StorageUnavailable
from strucprune_core.storage.local import LocalStore
from tests.support.claims import claim_job
from tests.support.ended_jobs import entry_of, failed, publish, report_of_one, succeeded


class RecordingServer:
    """In place of MLflow: what was logged, and what is raised instead."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, str, int]] = []
        self.contents: list[RunContent] = []
        self.tries = 0
        self.fail: Callable[[str], None] = lambda job_id: None

    def log(
        self,
        experiment: str,
        contents: Sequence[RunContent],
        read: Callable[[str], bytes | None],
        check: Callable[[], None],
    ) -> None:
        check()
        self.tries += 1
        self.fail(contents[0].job_id)
        for key in contents[0].documents:
            assert read(key)
        self.logged.append((experiment, contents[0].job_id, contents[0].run))
        self.contents += contents


class Place:
    """A recorder with a clock that tests set, and what it works with."""

    def __init__(self, journal: Journal, ledger: Ledger, folder: Path) -> None:
        self.journal, self.ledger, self.folder = journal, ledger, folder
        self.marks = Marks(LocalStore(folder / "state"))
        self.server = RecordingServer()
        self.now = 0.0
        self.stop = threading.Event()
        self.recorder = self.another()

    def another(self) -> Recorder:
        """A recorder of another process."""
        return Recorder(
            self.journal,
            self.ledger,
            self.marks,
            lambda uri: LocalStore(Path(uri)),
            cast(MlflowServer, self.server),
            experiment="strucprune/{tenant}",
            clock=lambda: self.now,
        )

    def end(self, job_id: str, state: JobState = JobState.FAILED, **change: Any) -> None:
        """A job that ended in journal and ledger."""
        entry = entry_of(self.folder / job_id)
        self.journal.write_spec(job_id, entry)
        self.ledger.create(entry.as_new_job(job_id))
        claim = claim_job(self.ledger, job_id, "w", 60)
        assert isinstance(claim, Claim)
        outcome = failed().model_copy(update={"state": state, **change})
        self.journal.write_outcome(job_id, outcome)
        self.ledger.settle(
            job_id, outcome.state, finished_at=outcome.finished_at, summary=outcome.summary
        )

    def step(self) -> list[str]:
        """One pass; the jobs that have been logged so far."""
        self.recorder.step(self.stop)
        return [job_id for _, job_id, _ in self.server.logged]


@pytest.fixture
def place(journal: Journal, ledger: Ledger, tmp_path: Path) -> Place:
    return Place(journal, ledger, tmp_path)


def test_each_end_is_logged_once(place: Place) -> None:
    place.step()
    report = report_of_one()
    publish(place.folder / "job_a", report)
    place.end("job_a", JobState.SUCCEEDED, summary=succeeded(report).summary)
    place.end("job_b")
    place.end("job_c", JobState.CANCELLED)
    assert sorted(place.step()) == ["job_a", "job_b"]
    assert {experiment for experiment, *_ in place.server.logged} == {"strucprune/acme"}
    done = {content.job_id: content for content in place.server.contents}
    assert done["job_a"].metrics["speed/decode_gain"] == 1.5
    record = place.ledger.get("job_a")
    assert record is not None
    assert record.started_at is not None
    assert done["job_a"].started_ms == round(record.started_at * 1000)
    for _ in range(2):
        place.now += module.RESCAN_SECONDS + 1
        place.step()
        place.recorder = place.another()
    assert place.server.tries == 2
    assert sorted(place.marks.all()) == [("job_a", 1), ("job_b", 1), ("job_c", 1)]


def test_each_run_of_a_retried_job(place: Place) -> None:
    """Also one that had no mark when the next run began."""
    place.end("job_a")
    place.journal.write_sequel("job_a", 1, Sequel(kind="retry", at=0.0))
    place.ledger.reopen("job_a", 1)
    place.step()
    assert place.server.logged == [("strucprune/acme", "job_a", 1)]
    place.journal.write_outcome("job_a", failed(run=2))
    place.ledger.settle("job_a", JobState.FAILED, finished_at=time.time(), run=2)
    place.step()
    assert [end[1:] for end in place.server.logged] == [("job_a", 1), ("job_a", 2)]


def test_a_loss_of_redis_and_a_death(place: Place) -> None:
    """Before the mark is written: then it is logged again, and MLflow finds what is there."""
    place.end("job_a")
    place.ledger.forget("job_a")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    write = place.marks.write
    place.marks.write = die  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        place.step()
    place.marks.write = write  # type: ignore[method-assign]
    first, place.recorder = place.recorder, place.another()
    place.step()
    assert place.server.tries == 1  # the dead process has the role for a while
    place.recorder = first
    assert place.step() == ["job_a", "job_a"]
    assert place.step() == ["job_a", "job_a"]


def test_one_process_has_the_role(place: Place) -> None:
    other = place.another()
    place.step()
    place.end("job_a")
    other.step(place.stop)
    assert place.server.tries == 0
    assert place.step() == ["job_a"]


def test_a_program_that_ends_leaves_the_role(place: Place) -> None:
    place.step()
    place.stop.set()
    run(place.recorder, place.stop)
    stop = threading.Event()
    place.end("job_a")
    deadline = time.monotonic() + 20
    other = place.another()
    while not place.server.logged:
        assert time.monotonic() < deadline
        other.step(stop)
        time.sleep(0.05)


def test_more_ends_than_are_kept_in_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 4)
    names = {f"job_{number}" for number in range(9)}
    for name in names:
        place.end(name)
        place.ledger.forget(name)
    assert len(place.step()) == 4
    assert len(place.step()) == 8
    assert {*place.step()} == names


def test_who_loses_the_role_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a job too; and what the other one leaves is found once the role is back."""
    place.step()
    place.end("job_a")
    place.end("job_b")
    held = iter([True, True, False])
    hold = place.ledger.hold_role
    with monkeypatch.context() as patch:
        patch.setattr(place.ledger, "hold_role", lambda *_: next(held))
        assert place.step() == []
    monkeypatch.setattr(place.ledger, "hold_role", hold)
    assert sorted(place.step()) == ["job_a", "job_b"]


def test_a_program_that_ends_stops_at_once(place: Place) -> None:
    place.end("job_a")
    place.end("job_b")
    place.server.fail = lambda _: place.stop.set()
    assert len(place.step()) == 1
    run(place.recorder, place.stop)
    assert place.server.tries == 1


def test_a_server_that_does_not_answer_is_asked_rarely(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all jobs, each time after twice as long; then all of them are logged."""

    def fail(_: str) -> None:
        raise NotLogged("no answer")

    place.server.fail = fail
    for name in ("job_a", "job_b", "job_c"):
        place.end(name)
    tried_at = []
    for _ in range(2000):
        before = place.server.tries
        place.step()
        if place.server.tries > before:
            assert place.server.tries == before + 1
            tried_at.append(place.now)
        place.now += 1
    pauses = [after - before for before, after in pairwise(tried_at)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert len(caplog.records) == len(tried_at)
    place.server.fail = lambda _: None
    place.now += 601
    assert sorted(place.step()) == ["job_a", "job_b", "job_c"]


def test_a_server_that_fails_at_one_run_takes_the_others(place: Place) -> None:
    """As an outage, so far as one can see."""

    def fail(job_id: str) -> None:
        if job_id == "job_a":
            raise NotLogged("500")

    place.server.fail = fail
    place.end("job_a")
    assert place.step() == []
    logged: list[str] = []
    for number in range(20):
        logged.append(f"job_{number}")
        place.end(logged[-1])
        place.now += 6  # the pause stays short, since others are logged
        assert place.step() == logged


def test_a_run_that_is_rejected_delays_no_other(place: Place) -> None:
    def fail(job_id: str) -> None:
        if job_id == "job_a":
            raise NotLogged("odd", rejected=True)

    place.server.fail = fail
    place.end("job_a")
    place.end("job_b")
    assert place.step() == ["job_b"]
    tries = place.server.tries
    for _ in range(3600):
        place.step()
        place.now += 1
    assert place.server.tries - tries == 9  # after 5 s, 10 s, ...
    place.server.fail = lambda _: None
    place.now += 3601
    assert place.step() == ["job_b", "job_a"]


@pytest.mark.parametrize("damaged", ["journal", "code"])
def test_a_job_that_nothing_can_be_made_of_delays_no_other(
    place: Place, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    def fail(job_id: str) -> None:
        if job_id == "job_a":
            raise RuntimeError("odd")

    place.end("job_a")
    place.end("job_b")
    if damaged == "journal":
        (place.folder / "state/jobs/job_a/outcome.json").write_bytes(b"{")
    else:
        place.server.fail = fail
    assert place.step() == ["job_b"]
    (told,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "job_a" in told.getMessage()
    assert bool(told.exc_info) == (damaged == "code")


def test_a_store_that_does_not_answer_delays_no_other(place: Place) -> None:
    """It may be that of one job alone, so the next pass begins with others."""

    asked: list[str] = []

    def fail_for_the_first(job_id: str) -> None:
        asked.append(job_id)
        if job_id == asked[0]:
            raise StorageUnavailable("no answer")

    place.server.fail = fail_for_the_first
    place.end("job_a")
    place.end("job_b")
    with pytest.raises(StorageUnavailable):
        place.step()
    assert place.step() == [asked[1]]
    place.now += 6
    with pytest.raises(StorageUnavailable):
        place.step()
    assert asked == [asked[0], asked[1], asked[0]]


def test_an_end_that_the_journal_does_not_have_yet(place: Place) -> None:
    """Some ends are in the ledger first."""
    entry = entry_of(place.folder / "out")
    place.journal.write_spec("job_a", entry)
    place.ledger.create(entry.as_new_job("job_a"))
    place.ledger.settle("job_a", JobState.FAILED, finished_at=time.time())
    assert place.step() == []
    place.journal.write_outcome("job_a", failed())
    assert place.step() == []
    place.now += 6
    assert place.step() == ["job_a"]


def test_old_ends_are_not_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Neither after an outage of days, nor when MLflow is set up beside a service with jobs."""
    place.end("job_a", finished_at=time.time() - module.MAX_AGE_SECONDS - 60)
    assert place.step() == []
    assert place.server.tries == 0
    assert [*place.marks.all()] == [("job_a", 1)]
    assert "too long ago" in caplog.text


def test_marks_go_with_their_jobs(place: Place) -> None:
    place.end("job_a")
    place.step()
    place.journal.remove("job_a", 1)
    place.ledger.forget("job_a")
    place.now += module.RESCAN_SECONDS + 1
    place.step()
    assert [*place.marks.all()] == []


@pytest.mark.parametrize("content", [None, b"<html>", b"x" * (16 * 2**20 + 1)])
def test_a_report_that_was_replaced(place: Place, content: bytes | None) -> None:
    """The job is logged all the same, with what the journal has."""
    report = report_of_one()
    publish(place.folder / "job_a", report)
    path = place.folder / "job_a/report.json"
    path.unlink() if content is None else path.write_bytes(content)
    place.end("job_a", JobState.SUCCEEDED, summary=succeeded(report).summary)

    def log(experiment: str, contents: Sequence[RunContent], read: Any, check: Any) -> None:
        there = {key: read(key) for key in contents[0].documents}
        assert there["report.json"] == (b"<html>" if content == b"<html>" else None)
        assert there["README.md"] == b"card of "
        place.server.contents += contents

    place.server.log = log  # type: ignore[method-assign]
    place.step()
    (logged,) = place.server.contents
    assert logged.metrics["parameters_after"] == report.after.parameters
    assert "speed/decode_gain" not in logged.metrics


def test_a_pass_that_fails_is_not_the_last(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def ended_within(*_: object) -> Any:
        nonlocal passes
        passes += 1
        if passes == 3:
            place.stop.set()
        raise StorageUnavailable("no answer") if passes == 1 else RuntimeError("odd")

    monkeypatch.setattr(place.ledger, "ended_within", ended_within)
    run(place.recorder, place.stop, 0.001)
    assert passes == 3
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, True]


def test_nothing_is_logged_unless_it_is_asked_for(settings: Settings) -> None:
    assert _recorder(settings, Services.connect(settings)) is None


def test_a_client_that_is_not_installed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    asked = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(SystemExit, match="pip install"):
        _recorder(asked, Services.connect(asked))


@pytest.mark.parametrize(
    "uri",
    ["mlflow.example.com", "file:///mlruns", "sqlite:///x", "https://u:p@host", "https://h?x"],
)
def test_a_server_that_is_none_fails_at_the_start(settings: Settings, uri: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(settings.model_dump() | {"mlflow_tracking_uri": uri})
