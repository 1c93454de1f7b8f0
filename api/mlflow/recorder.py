"""Finds jobs that have ended, and logs each to MLflow once.

The journal says which jobs have ended, marks in the state store which of them are done with
(`marks`). The rest is left to do. It is found at the start and once in a while. In between, the
ledger names the jobs that ended a moment ago. So nothing is lost when a process dies, Redis is
lost, or MLflow does not answer; then runs are logged later, for some days.

The recorder is a thread of the reconciler. One of several reconcilers has the role at a time.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from api.jobs.bucket_reads import NotAsWritten, read_small
from api.jobs.journal import Journal, JournalEntry, Outcome
from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.sequel import OpenStore
from api.jobs.state import JobState
from api.mlflow.content import contents_of
from api.mlflow.figures import Figures, read_figures
from api.mlflow.marks import Marks
from api.mlflow.server import MlflowServer, NotLogged
from strucprune_core.errors import StorageError, StorageUnavailable, StrucPruneError
from strucprune_core.report.document import REPORT_JSON

_log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
# How often journal and marks are compared. Both are listed as a whole.
RESCAN_SECONDS = 3600.0
# Ends that the ledger is asked for: longer ago than a pass takes.
_RECENT_SECONDS = 600.0
_RECENT = 1000
# Ends in memory. Those beyond are found by a later comparison.
_MOST_WAITING = 10_000
FIRST_RETRY_SECONDS = 5.0
# Of a job whose run is rejected, and of a server that does not answer.
MAX_RETRY_SECONDS = 3600.0
MAX_PAUSE_SECONDS = 600.0
_MOST_DOUBLINGS = 32
# Ends are not logged after this time.
MAX_AGE_SECONDS = 7 * 24 * 3600.0
# A job has ended in the ledger a moment before it has in the journal.
_JOURNAL_TRIES = 10
# Longer than a comparison takes, during which the role is not renewed.
_ROLE, _ROLE_SECONDS = "mlflow", 300
# As the API limits them.
_MAX_DOCUMENT_BYTES = 16 * 2**20

End = tuple[str, int]
"""A job and its run that ended."""


class _Interrupted(Exception):
    """The program is to end, or another process has the role now."""


class _NotInJournal(Exception):
    """The journal does not have the end yet."""


@dataclass(slots=True)
class _Wait:
    due_at: float
    failures: int = 0


class Recorder:
    """Logs jobs that have ended, one pass for each call of `step`.

    Args:
        journal: How jobs ended.
        ledger: Which of them ended a moment ago.
        marks: Which of them are done with.
        open_store: Opens output prefixes.
        server: Where runs are logged.
        experiment: Name of the experiment; `{tenant}` stands for the job's tenant.
        first_retry_seconds: Time until the first retry.
        clock: Seconds.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        marks: Marks,
        open_store: OpenStore,
        server: MlflowServer,
        *,
        experiment: str,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._marks = marks
        self._open_store = open_store
        self._server = server
        self._experiment = experiment
        self._first_retry_seconds = first_retry_seconds
        self._clock = clock
        self._holder = secrets.token_hex(8)
        self._waiting: dict[End, _Wait] = {}
        # Ended lately, and done with or left to the next comparison.
        self._seen: set[End] = set()
        self._rescan_at = -float("inf")
        self._paused_until = -float("inf")
        self._failures = 0

    def step(self, stop: threading.Event) -> None:
        """Log what is due, until `stop` is set.

        Raises:
            LedgerUnavailable: Redis does not answer.
            StorageError: the state store does not answer.
        """
        try:
            self._check(stop)
            self._find()
            for end in self._due():
                self._check(stop)
                self._handle(end, stop)
        except _Interrupted:
            return

    def close(self) -> None:
        """Leave the role to another process.

        Raises:
            LedgerUnavailable: Redis does not answer.
        """
        self._ledger.hold_role(_ROLE, self._holder, 1)

    def _check(self, stop: threading.Event) -> None:
        """Keep the role."""
        if stop.is_set():
            raise _Interrupted
        if not self._ledger.hold_role(_ROLE, self._holder, _ROLE_SECONDS):
            # What the other one leaves undone is found again.
            self._rescan_at = -float("inf")
            raise _Interrupted

    def _find(self) -> None:
        recent = self._ledger.ended_within(_RECENT_SECONDS, _RECENT)
        self._seen &= {*recent}
        if self._clock() >= self._rescan_at and len(self._waiting) <= _MOST_WAITING // 2:
            self._compare()
            # If not all have fitted in, again once half of them are done with.
            full = len(self._waiting) >= _MOST_WAITING
            self._rescan_at = self._clock() + (0.0 if full else RESCAN_SECONDS)
        self._add(end for end in recent if end not in self._seen)

    def _compare(self) -> None:
        """Find the ends that have no mark, and the marks that have no job."""
        # Marks first: the job of a mark that is listed here is listed below, or was removed.
        marked = {*self._marks.all()}
        standing = self._journal.jobs()
        for job_id, run in marked:
            if job_id not in standing:
                self._marks.remove(job_id, run)
        for job_id, stands in standing.items():
            if stands.asked:
                ended = range(1, stands.run + stands.ended)
                self._add((job_id, run) for run in ended if (job_id, run) not in marked)

    def _add(self, ends: Iterator[End]) -> None:
        for end in ends:
            if len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting.setdefault(end, _Wait(self._clock()))

    def _due(self) -> list[End]:
        if self._clock() < self._paused_until:
            return []
        due = [end for end, wait in self._waiting.items() if wait.due_at <= self._clock()]
        # Those that have failed come last, so that they delay no other.
        return sorted(due, key=lambda end: self._waiting[end].failures)

    def _handle(self, end: End, stop: threading.Event) -> None:
        if self._clock() < self._paused_until:
            return
        try:
            self._record(end, stop)
        except _Interrupted:
            raise
        except (LedgerUnavailable, StorageUnavailable):
            # The pass is over. The next one begins with others, in case it is only of this job.
            self._wait_longer(end)
            raise
        except NotLogged as error:
            self._retry_later(end, error)
            return
        except _NotInJournal:
            self._wait_longer(end)
            if self._waiting[end].failures < _JOURNAL_TRIES:
                return
        except Exception as error:
            # Only of this job: the others go on.
            known = isinstance(error, StrucPruneError)
            _log.error("job %s: not logged to MLflow: %s", end[0], error, exc_info=not known)
            self._wait_longer(end)
            return
        self._waiting.pop(end, None)
        self._seen.add(end)

    def _retry_later(self, end: End, error: NotLogged) -> None:
        if error.rejected:
            _log.warning("job %s: MLflow does not take its run yet: %s", end[0], error)
            self._wait_longer(end)
            return
        # Whatever else is due would meet the same server. If it fails at this run alone, the others
        # are tried before it from now on.
        self._waiting[end].failures = min(self._waiting[end].failures + 1, _MOST_DOUBLINGS)
        pause = min(self._first_retry_seconds * 2.0**self._failures, MAX_PAUSE_SECONDS)
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        self._paused_until = self._clock() + pause
        _log.warning("MLflow does not answer, tried again in %.0f s: %s", pause, error)

    def _wait_longer(self, end: End) -> None:
        wait = self._waiting[end]
        seconds = min(self._first_retry_seconds * 2.0**wait.failures, MAX_RETRY_SECONDS)
        wait.failures = min(wait.failures + 1, _MOST_DOUBLINGS)
        wait.due_at = self._clock() + seconds

    def _record(self, end: End, stop: threading.Event) -> None:
        """Log the end, unless that is done or not wanted."""
        job_id, run = end
        if self._marks.exists(job_id, run):
            return
        entry = self._journal.read_spec(job_id)
        if entry is None:
            return  # The job was removed.
        outcome = self._journal.read_outcome(job_id, run)
        if outcome is None:
            raise _NotInJournal
        if outcome.state == JobState.CANCELLED:
            self._marks.write(job_id, run, "cancelled")
        elif time.time() - outcome.finished_at > MAX_AGE_SECONDS:
            _log.warning("job %s: it ended too long ago to be logged to MLflow", job_id)
            self._marks.write(job_id, run, "too_old")
        else:
            self._log_run(job_id, entry, outcome, stop)
            self._failures = 0
            self._marks.write(job_id, run, "logged")
            _log.info("job %s: logged to MLflow", job_id)

    def _log_run(
        self, job_id: str, entry: JournalEntry, outcome: Outcome, stop: threading.Event
    ) -> None:
        def read(key: str) -> bytes | None:
            return self._document(job_id, entry, key)

        report = read(REPORT_JSON) if outcome.state == JobState.SUCCEEDED else None
        figures = Figures() if report is None else read_figures(report)
        if figures is None:
            _log.warning("job %s: its report is not readable, so MLflow lacks figures", job_id)
            figures = Figures()
        record = self._ledger.get(job_id)
        known = record is not None and record.run == outcome.run and record.started_at
        contents = contents_of(job_id, entry, outcome, figures, known or entry.created_at)
        experiment = self._experiment.replace("{tenant}", entry.tenant)
        self._server.log(experiment, contents, read, lambda: self._check(stop))

    def _document(self, job_id: str, entry: JournalEntry, key: str) -> bytes | None:
        try:
            store = self._open_store(entry.spec.output.uri_prefix)
            return read_small(store, key, _MAX_DOCUMENT_BYTES)
        except StorageUnavailable:
            raise
        except (NotAsWritten, StorageError) as error:
            _log.warning("job %s: MLflow lacks a document: %s", job_id, error)
            return None


def run(recorder: Recorder, stop: threading.Event, every_seconds: float = EVERY_SECONDS) -> None:
    """Do passes until `stop` is set. An outage is logged, and the next pass tries again.

    So is any other error: otherwise the reconciler would go on without this thread, unnoticed.
    """
    while not stop.is_set():
        try:
            recorder.step(stop)
        except StrucPruneError as error:
            _log.error("MLflow pass failed: %s", error)
        except Exception:
            _log.exception("MLflow pass failed")
        stop.wait(every_seconds)
    with contextlib.suppress(LedgerUnavailable):
        recorder.close()
