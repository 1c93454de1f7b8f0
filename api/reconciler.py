"""The reconciler: repairs what crashes leave behind. `python -m api.reconciler`; run one or more.

Journal, ledger and broker should agree. Each pass compares them and corrects the ledger from the
journal, and the broker from the ledger. Every step may be repeated, and several reconcilers may do
the same step at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from api.jobs import environment, logs
from api.jobs.archive import archive
from api.jobs.doorbell import Doorbell, ring_if_missing
from api.jobs.ends import commit_end, settle_from_journal
from api.jobs.heartbeat_file import HeartbeatFile
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger, LedgerFull
from api.jobs.limits import KeptLimits
from api.jobs.meters import LEASES_LOST, Tally
from api.jobs.rebuild import rebuild
from api.jobs.sequel import OpenStore, delete
from api.jobs.state import TERMINAL
from api.mlflow import recorder as mlflow_recorder
from api.mlflow.marks import Marks
from api.mlflow.recorder import Recorder
from api.mlflow.server import MlflowServer
from api.services import Services
from api.settings import Settings
from api.webhooks import dispatcher as webhooks
from api.webhooks.delivery import WebhookClient
from api.webhooks.dispatcher import Dispatcher
from strucprune_core.errors import StorageError, StorageUnavailable, StrucPruneError

_log = logging.getLogger(__name__)

# Jobs handled in each step of a pass. The rest follows in the next pass, a few seconds later.
BATCH = 100
# Share of a tenant's limits at which its ended jobs are archived, so that it rarely reaches them.
KEPT_SHARE = 0.9


class Reconciler:
    """Makes journal, ledger and broker agree, one pass for each call of `step`.

    Args:
        journal: The requests, and how jobs ended.
        ledger: The live state.
        doorbell: Rings for workers.
        open_store: Opens output prefixes, for deletions that include what jobs published.
        retention_seconds: Jobs that ended this long ago are removed; None keeps all.
        kept_limits: How much of each tenant stays in the ledger; None keeps all.
        requeue_after_seconds: For jobs queued this long the doorbell rings again. Jobs that rest
            after a failure get their next attempt after this time.
        rebuild_every_seconds: Time between comparisons of the whole journal with the ledger.
        beat: Called often during steps that may take long.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        doorbell: Doorbell,
        *,
        open_store: OpenStore,
        retention_seconds: float | None = None,
        kept_limits: KeptLimits | None = None,
        requeue_after_seconds: float,
        rebuild_every_seconds: float,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._doorbell = doorbell
        self._open_store = open_store
        self._retention_seconds = retention_seconds
        self._kept_limits = kept_limits or KeptLimits()
        self._requeue_after_seconds = requeue_after_seconds
        self._rebuild_every_seconds = rebuild_every_seconds
        self._tally = Tally(ledger)
        self._rebuild_at = 0.0
        self._beat = beat
        # Whether the broker has answered so far in this pass. Waiting for a silent broker takes
        # seconds, so it is done once; a later pass rings for the rest.
        self._broker_answers = True

    def step(self) -> None:
        """Do one pass.

        Raises:
            LedgerUnavailable: the ledger does not answer, or it is full. If it is full, all steps
                were tried.
            StorageUnavailable: the journal does not answer.
        """
        self._broker_answers = True
        full: LedgerFull | None = None
        for repair in (
            self._rebuild_if_due,
            self._settle_committed,
            self._take_back_expired,
            self._end_overdue,
            self._end_rests,
            self._ring_again,
            self._ring_for_help,
            self._remove_old,
            self._archive_crowded,
        ):
            try:
                repair()
            except LedgerFull as error:
                # A job that cannot be entered must not keep later steps from removing others.
                full = error
        self._tally.flush()
        if full is not None:
            raise full

    def _rebuild_if_due(self) -> None:
        """Make journal and ledger agree after a loss of Redis or a crash between the two."""
        if time.monotonic() < self._rebuild_at and self._ledger.is_intact():
            return
        restored = rebuild(
            self._journal, self._ledger, self._open_store, self._beat, self._retention_seconds
        )
        self._rebuild_at = time.monotonic() + self._rebuild_every_seconds
        if restored:
            _log.warning("restored %d jobs from the journal", restored)

    def _settle_committed(self) -> None:
        """Complete jobs whose worker died between the journal and the ledger."""
        for job_id in self._ledger.expired(BATCH):
            with self._logging_damage(job_id):
                record = self._ledger.get(job_id)
                if record is not None:
                    settle_from_journal(self._journal, self._ledger, job_id, record.run)

    def _take_back_expired(self) -> None:
        """Requeue or end jobs whose lease has expired."""
        for job_id in self._ledger.requeue_expired(BATCH):
            with self._logging_damage(job_id):
                self._take_back(job_id)

    def _take_back(self, job_id: str) -> None:
        record = self._ledger.get(job_id)
        if record is None:
            return
        self._tally.count(LEASES_LOST, "reconciler")
        _log.warning("job %s: lease expired, now %s", job_id, record.state.value)
        if record.state in TERMINAL:
            # If the worker has committed an outcome meanwhile, that one stands.
            commit_end(self._journal, self._ledger, record)
        # For this job if it is queued again, or for another that may run in its place.
        self._ring_if_missing()

    def _end_overdue(self) -> None:
        """Journal the failure of jobs whose deadline passed while no worker held them."""
        for job_id in self._ledger.overdue(BATCH):
            with self._logging_damage(job_id):
                record = self._ledger.get(job_id)
                if record is not None:
                    _log.warning("job %s: deadline exceeded", job_id)
                    commit_end(self._journal, self._ledger, record)

    def _remove_old(self) -> None:
        """Remove jobs that ended long ago. What they published stays."""
        if self._retention_seconds is None:
            return
        for job_id in self._ledger.ended_longer_than(self._retention_seconds, BATCH):
            with self._logging_damage(job_id):
                record = self._ledger.get(job_id)
                if record is not None and delete(
                    self._journal, self._ledger, self._open_store, record
                ):
                    _log.info("job %s: removed, ended at %.0f", job_id, record.finished_at or 0)

    def _archive_crowded(self) -> None:
        """Archive the oldest ended jobs of tenants that come near their limits of kept jobs."""
        for job_id in self._ledger.crowded(self._kept_limits, KEPT_SHARE, BATCH):
            with self._logging_damage(job_id):
                record = self._ledger.get(job_id)
                if record is not None and archive(self._journal, self._ledger, record):
                    _log.info("job %s: archived", job_id)

    def _ring_again(self) -> None:
        """Ring for queued jobs whose doorbell was lost or reached a worker that had to refuse.

        Rings once for each queued job beyond the number of waiting doorbells. More would pile up
        while all workers are busy.
        """
        waiting = self._doorbell.waiting() if self._broker_answers else None
        if waiting is None:
            self._broker_answers = False
            return
        missing = min(self._ledger.queued() - waiting, BATCH)
        if missing <= 0:
            return
        for job_id in self._ledger.queued_longer_than(self._requeue_after_seconds, missing):
            with self._logging_damage(job_id):
                record = self._ledger.get(job_id)
                if record is not None and not settle_from_journal(
                    self._journal, self._ledger, job_id, record.run
                ):
                    self._ring()

    def _end_rests(self) -> None:
        """Let workers claim jobs again that have rested long enough after a failure."""
        for _ in self._ledger.end_rests(self._requeue_after_seconds, BATCH):
            self._ring_if_missing()

    def _ring_for_help(self) -> None:
        """Ring again for jobs that want help, unless earlier calls for help still wait."""
        if self._broker_answers and self._doorbell.waiting_for_help() == 0:
            for job_id, times in self._ledger.seats.wanted(self._requeue_after_seconds, BATCH):
                self._beat()
                if not self._doorbell.ring_for_help(job_id, times):
                    return

    def _ring(self) -> None:
        """Ring, if the broker answers."""
        if self._broker_answers:
            self._broker_answers = self._doorbell.ring()

    def _ring_if_missing(self) -> None:
        if self._broker_answers:
            self._broker_answers = ring_if_missing(self._ledger, self._doorbell)

    @contextmanager
    def _logging_damage(self, job_id: str) -> Iterator[None]:
        """Log a damaged document of one job, so that all others are still repaired."""
        self._beat()
        try:
            yield
        except StorageUnavailable:
            raise
        except StorageError as error:
            _log.error("job %s: cannot be repaired: %s", job_id, error)


def run(
    reconciler: Reconciler,
    stop: threading.Event,
    every_seconds: float,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Do passes until `stop` is set. An outage is logged, and the next pass tries again.

    `beat` is called before each pass, also during an outage, which a restart would not end.
    """
    while not stop.is_set():
        beat()
        try:
            reconciler.step()
        except StrucPruneError as error:
            _log.error("reconciler pass failed: %s", error)
        stop.wait(every_seconds)


def _recorder(settings: Settings, services: Services) -> Recorder | None:
    """What logs jobs to MLflow; None if that is not asked for."""
    if settings.mlflow_tracking_uri is None:
        return None
    try:
        server = MlflowServer(settings.mlflow_tracking_uri)
    except ImportError as error:
        raise SystemExit(
            "Cannot start: STRUCPRUNE_MLFLOW_TRACKING_URI needs MLflow's client. Install it: "
            f"pip install mlflow-skinny ({error})"
        ) from error
    return Recorder(
        services.journal,
        services.ledger,
        Marks(services.stores.open(settings.state_uri)),
        services.stores.open,
        server,
        experiment=settings.mlflow_experiment,
    )


def main() -> None:
    """Reconcile until SIGTERM or SIGINT."""
    settings = environment.read(Settings)
    logs.configure(settings.log_format)
    services = Services.connect(settings)
    heartbeat = HeartbeatFile(settings.heartbeat_file)
    days = settings.retention_days
    reconciler = Reconciler(
        services.journal,
        services.ledger,
        services.doorbell,
        open_store=services.stores.open,
        retention_seconds=days and days * 24 * 3600,
        kept_limits=settings.kept_limits,
        requeue_after_seconds=settings.requeue_after_seconds,
        rebuild_every_seconds=settings.rebuild_every_seconds,
        beat=heartbeat.beat,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    dispatcher = Dispatcher(
        services.outbox,
        services.ledger,
        WebhookClient(settings.webhook_policy),
        settings.webhook_secrets,
    )
    # In threads of their own: receivers may be slow, and repairs must not wait for them.
    threads = [
        threading.Thread(
            target=webhooks.run, args=(dispatcher, stop, webhooks.EVERY_SECONDS), name="webhooks"
        )
    ]
    recorder = _recorder(settings, services)
    if recorder is not None:
        threads.append(
            threading.Thread(target=mlflow_recorder.run, args=(recorder, stop), name="mlflow")
        )
    for thread in threads:
        thread.start()
    try:
        run(reconciler, stop, settings.reconcile_every_seconds, heartbeat.beat)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        asyncio.run(services.close())


if __name__ == "__main__":
    main()
