"""Answers one doorbell: claim the next job, supervise its solve, record how the attempt ended.

This process never imports torch. A process that used torch cannot fork safely, and a solve must be
a process of its own so that it can be killed at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from api.jobs import logs
from api.jobs.doorbell import Doorbell, ring_if_missing
from api.jobs.ends import settle_from_journal
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger, LedgerUnavailable, connect
from api.jobs.meters import ATTEMPTS, BLOCKED, DUPLICATES, ENDED, LEASES_LOST, Tally
from api.jobs.record import Claim, Refusal
from api.jobs.tracing import TRACEPARENT, NoTracing, Tracing, tracing
from strucprune_core.errors import (
    InvalidSpec,
    ScratchUnavailable,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.plain_errors import plain_messages
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store
from worker.attempt_mark import leave_mark
from worker.child import SOLVE, SolveProcess
from worker.conclusion import Attempt, conclude, give_back, retry
from worker.failures import no_room, unforeseen
from worker.lease import Lease
from worker.memory_retry import following
from worker.presence import Presence, own_name
from worker.protocol import EXIT_FAILED, Request
from worker.scratch import Scratch, Unfit
from worker.settings import Settings
from worker.stop import Drain
from worker.supervision import Ended, Supervision
from worker.unit_reservations import UnitReservations

_log = logging.getLogger(__name__)

# A job that is too large for the free workers says so once it has waited this long. Before that,
# another worker has probably claimed it.
EXPLAINED_AFTER_SECONDS = 30.0
# Too little for any job, also for one that needs no temporary files.
_NO_SCRATCH = -1


@dataclass(frozen=True, slots=True)
class Services:
    """The services that a worker uses, its name, and how fast its device is, if that is known."""

    ledger: Ledger
    journal: Journal
    doorbell: Doorbell
    tracing: Tracing = field(default_factory=NoTracing)
    name: str = field(default_factory=own_name)
    rates: DeviceRates | None = None

    @classmethod
    @contextlib.contextmanager
    def connected(
        cls, settings: Settings, name: str, rates: DeviceRates | None = None
    ) -> Iterator[Services]:
        """Connections for one job, so that none is shared across a fork and none grows stale.

        Args:
            settings: Where the services are.
            name: Of the worker (see `presence`).
            rates: Of its device.
        """
        ledger = connect(settings.redis_url)
        doorbell = Doorbell(settings.celery_broker_url)
        # Not before the fork: spans are exported by a thread.
        spans = tracing("strucprune-worker")
        journal = Journal(open_store(settings.state_uri, settings.s3))
        try:
            yield cls(ledger, journal, doorbell, spans, name, rates)
        finally:
            spans.close()
            doorbell.close()
            ledger.close()


def run_next(
    services: Services,
    settings: Settings,
    drain: Drain,
    scratch: Scratch,
    solve: Sequence[str] = SOLVE,
) -> None:
    """Answer one doorbell. Returns when the job has ended or was given back, or if there was none.

    Raises nothing. The reconciler repairs what an outage of ledger or journal leaves behind.
    """
    if drain.started:
        # The job stays queued: the reconciler rings again.
        return
    unfit = scratch.unfit()
    free_bytes = _NO_SCRATCH if unfit else scratch.free_bytes()
    tally = Tally(services.ledger)
    try:
        taken = services.ledger.claim(
            worker_id(), settings.lease_seconds, settings.running_limits, free_bytes
        )
    except LedgerUnavailable as error:
        _log.error("cannot claim a job: %s", error)
        return
    with contextlib.suppress(LedgerUnavailable):
        _explain_too_large(taken.too_large, services)
    claim, record = taken.claim, taken.record
    if isinstance(claim, Refusal) or record is None:
        full = Unfit("full", f"all queued jobs need more than {free_bytes:,} bytes")
        _without_a_job(claim, services, tally, scratch, unfit or full)
        return
    attempt = Attempt(
        services.ledger,
        services.journal,
        services.doorbell,
        settings,
        record,
        claim,
        tally,
        services.tracing,
        scratch,
        Presence(services.ledger, services.name),
        services.rates,
    )
    scratch.fits()
    tally.count(ATTEMPTS)
    with logs.about_job(record.id), _attempt_span(services.tracing, attempt):
        _log.info("job %s: attempt %d began, fence %d", record.id, claim.attempt, claim.fence)
        _run_and_conclude(attempt, drain, solve)


def _explain_too_large(job_ids: Sequence[str], services: Services) -> None:
    """Note on jobs that have waited long that this worker has too little disk space for them."""
    for job_id in job_ids:
        record = services.ledger.get(job_id)
        if record is not None:
            error = no_room(record.scratch_bytes).as_dict()
            services.ledger.decline(job_id, error, EXPLAINED_AFTER_SECONDS)


def _without_a_job(
    why: Claim | Refusal, services: Services, tally: Tally, scratch: Scratch, unfit: Unfit
) -> None:
    """Count why no job was claimed. A worker that lacks disk space rings for another and rests."""
    _log.info("claimed no job: %s", why)
    if why is Refusal.NO_ROOM:
        with contextlib.suppress(LedgerUnavailable):
            ring_if_missing(services.ledger, services.doorbell)
        scratch.rest(unfit, tally)
    else:
        tally.count(BLOCKED if why is Refusal.BLOCKED else DUPLICATES)
        tally.flush()


@contextlib.contextmanager
def _attempt_span(spans: Tracing, attempt: Attempt) -> Iterator[None]:
    """A span around the attempt, in the trace of the job's submission."""
    attributes: dict[str, str | int | float | bool] = {
        "job.id": attempt.claim.job_id,
        "job.run": attempt.claim.run,
        "job.attempt": attempt.claim.attempt,
    }
    with spans.span("attempt", attempt.record.traceparent, attributes) as span:
        yield
        with contextlib.suppress(LedgerUnavailable):
            after = attempt.ledger.get(attempt.claim.job_id)
            span.attributes["job.state"] = after.state.value if after else "unknown"


def _run_and_conclude(attempt: Attempt, drain: Drain, solve: Sequence[str]) -> None:
    job_id = attempt.claim.job_id
    try:
        _run_claimed(attempt, drain, solve)
    except Exception as error:
        # Do not leave the job to its lease: its owner should read the reason now.
        _log.exception("job %s: the worker failed", job_id)
        failure = error if isinstance(error, StrucPruneError) else unforeseen(error)
        # If ledger or journal do not answer here, the lease expires or the next rebuild journals
        # the end, with the same effect.
        with contextlib.suppress(StrucPruneError):
            retry(attempt, failure.as_dict())
    _count_end(attempt)
    # This job may be queued again, or its end lets another job of its tenant run.
    with contextlib.suppress(LedgerUnavailable):
        ring_if_missing(attempt.ledger, attempt.doorbell)


def _count_end(attempt: Attempt) -> None:
    """Count how the attempt ended, by the present state of the job in the ledger."""
    with contextlib.suppress(LedgerUnavailable):
        after = attempt.ledger.get(attempt.claim.job_id)
        if after is None or after.fence != attempt.claim.fence:
            attempt.tally.count(LEASES_LOST, "worker")
        else:
            code = after.error["code"] if after.error else ""
            attempt.tally.count(ENDED, after.state.value, code)
    attempt.tally.flush()


def worker_id() -> str:
    """The name of this process in the ledger, for people who read it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _run_claimed(attempt: Attempt, drain: Drain, solve: Sequence[str]) -> None:
    job_id = attempt.claim.job_id
    try:
        if settle_from_journal(attempt.journal, attempt.ledger, job_id, attempt.claim.run):
            # An earlier attempt journalled its outcome and died before it updated the ledger.
            return
    except StorageUnavailable as error:
        # The job is not at fault, so the attempt does not count: else an outage of minutes would
        # fail every queued job. It rests until the reconciler lets workers claim it again.
        _log.warning("job %s cannot begin, the journal does not answer: %s", job_id, error)
        attempt.ledger.release(job_id, attempt.claim.fence, rests=True)
        return
    lease = Lease(attempt.ledger, attempt.claim, attempt.settings.lease_seconds)
    try:
        spec = JobSpec.model_validate(attempt.record.spec)
    except ValidationError as error:
        # Another release of the API accepted it.
        failure = InvalidSpec(
            f"this worker's release cannot read the job ({plain_messages(error.errors())})",
            remedy="Submit it again, or ask the operator to run one release of all parts.",
        )
        conclude(attempt, lease, Ended(EXIT_FAILED, error=failure.as_dict()))
        return
    if drain.started:
        give_back(attempt)
        return
    try:
        ended = _solve(attempt, lease, spec, drain, solve)
    except ScratchUnavailable as error:
        ended = Ended(EXIT_FAILED, error=error.as_dict())
    conclude(attempt, lease, ended)


def _solve(
    attempt: Attempt, lease: Lease, spec: JobSpec, drain: Drain, argv: Sequence[str]
) -> Ended:
    """Run the solve to its end, in a scratch directory that is removed afterwards."""
    reservations = None
    if spec.runtime.max_workers > 1:
        claim = attempt.claim
        reservations = UnitReservations(
            attempt.ledger.seats, attempt.doorbell, claim.job_id, claim.fence
        )
    with scratch_directory(attempt.settings.scratch_directory) as directory:
        leave_mark(directory, attempt.claim)
        files = directory / "files"
        files.mkdir()
        request = Request(
            job_id=attempt.claim.job_id,
            spec=following(spec, attempt.record.plan),
            workspace_uri=attempt.journal.workspace(attempt.record.workspace_id).uri,
            scratch=str(files),
            part="lead" if reservations is not None else "alone",
            traceparent=TRACEPARENT.get(),
            log_format=attempt.settings.log_format,
            task_downloads=attempt.settings.task_downloads,
            rates=attempt.rates,
        )
        with contextlib.closing(SolveProcess(request, argv)) as process:
            return Supervision(
                process,
                lease,
                attempt.settings,
                drain,
                attempt.tally,
                attempt.tracing,
                attempt.claim.seconds_left,
                reservations,
                attempt.presence,
            ).watch()
