"""One doorbell answered: claim the next job, run a solve under watch, write down how it ended.

Never imports torch: a process that used it cannot fork safely, and a solve that must die at once
has to be another process.
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
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store
from worker.attempt_mark import leave_mark
from worker.child import SOLVE, SolveProcess
from worker.claiming import Claiming
from worker.conclusion import Desk, conclude, give_back, retry
from worker.failures import no_room, unforeseen
from worker.lease import Lease
from worker.memory_retry import following
from worker.protocol import EXIT_FAILED, Request
from worker.scratch import Scratch, Unfit
from worker.settings import Settings
from worker.stop import Drain
from worker.supervision import Ended, Supervision

_log = logging.getLogger(__name__)

# A job that free workers have no room for says so once it has waited so long: until then another
# worker has probably taken it.
TOLD_AFTER_SECONDS = 30.0
# Less than any job needs.
_NO_SCRATCH = -1


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker is connected to."""

    ledger: Ledger
    journal: Journal
    doorbell: Doorbell
    tracing: Tracing = field(default_factory=NoTracing)

    @classmethod
    @contextlib.contextmanager
    def connected(cls, settings: Settings) -> Iterator[Services]:
        """Connections for one job: none is carried over a fork, and none grows stale."""
        ledger = connect(settings.redis_url)
        doorbell = Doorbell(settings.celery_broker_url)
        # Made here and not before the fork: what exports spans is a thread.
        spans = tracing("strucprune-worker")
        journal = Journal(open_store(settings.state_uri, settings.s3))
        try:
            yield cls(ledger, journal, doorbell, spans)
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
    """Answer one doorbell; returns when a job has ended, was given back, or there was none.

    Nothing is raised: the reconciler heals what an outage of ledger or journal leaves.
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
        _tell_too_large(taken.too_large, services)
    claim, record = taken.claim, taken.record
    if isinstance(claim, Refusal) or record is None:
        full = Unfit("full", f"all jobs that wait need more than {free_bytes:,} bytes")
        _go_without(claim, services, tally, scratch, unfit or full)
        return
    desk = Desk(
        services.ledger,
        services.journal,
        services.doorbell,
        settings,
        record,
        claim,
        tally,
        services.tracing,
        scratch,
    )
    scratch.fits()
    tally.count(ATTEMPTS)
    with logs.about_job(record.id), _attempt(services.tracing, desk):
        _log.info("%s: attempt %d, fence %d", record.id, claim.attempt, claim.fence)
        _run_and_conclude(desk, drain, solve)


def _tell_too_large(job_ids: Sequence[str], services: Services) -> None:
    """Let jobs that have waited for long say that this worker has no room for them."""
    for job_id in job_ids:
        record = services.ledger.get(job_id)
        if record is not None:
            told = no_room(record.scratch_bytes).as_dict()
            services.ledger.decline(job_id, told, TOLD_AFTER_SECONDS)


def _go_without(
    why: Claim | Refusal, services: Services, tally: Tally, scratch: Scratch, unfit: Unfit
) -> None:
    """There is no job for this worker. One without room lets others have the doorbell."""
    _log.info("no job is taken: %s", why)
    if why is Refusal.NO_ROOM:
        with contextlib.suppress(LedgerUnavailable):
            ring_if_missing(services.ledger, services.doorbell)
        scratch.rest(unfit, tally)
    else:
        tally.count(BLOCKED if why is Refusal.BLOCKED else DUPLICATES)
        tally.flush()


@contextlib.contextmanager
def _attempt(spans: Tracing, desk: Desk) -> Iterator[None]:
    """A span around the attempt, which goes on with the trace of the job's submission."""
    attributes: dict[str, str | int | float | bool] = {
        "job.id": desk.claim.job_id,
        "job.run": desk.claim.run,
        "job.attempt": desk.claim.attempt,
    }
    with spans.span("attempt", desk.record.traceparent, attributes) as span:
        yield
        with contextlib.suppress(LedgerUnavailable):
            after = desk.ledger.get(desk.claim.job_id)
            span.attributes["job.state"] = after.state.value if after else "unknown"


def _run_and_conclude(desk: Desk, drain: Drain, solve: Sequence[str]) -> None:
    job_id = desk.claim.job_id
    try:
        _run_claimed(desk, drain, solve)
    except Exception as error:
        # Whatever it is, the job must not be left to its lease, and the user is to read the reason.
        _log.exception("%s could not be concluded", job_id)
        failure = error if isinstance(error, StrucPruneError) else unforeseen(error)
        # If the ledger or the journal does not answer (either), the lease expires, or the next
        # rebuild journals the end, with the same effect.
        with contextlib.suppress(StrucPruneError):
            retry(desk, failure.as_dict())
    _count_end(desk)
    # This job may wait again, or one of the same tenant that had to wait for this one's end.
    with contextlib.suppress(LedgerUnavailable):
        ring_if_missing(desk.ledger, desk.doorbell)


def _count_end(desk: Desk) -> None:
    """Count how the attempt ended, by what the ledger says of the job now."""
    with contextlib.suppress(LedgerUnavailable):
        after = desk.ledger.get(desk.claim.job_id)
        if after is None or after.fence != desk.claim.fence:
            desk.tally.count(LEASES_LOST, "worker")
        else:
            code = after.error["code"] if after.error else ""
            desk.tally.count(ENDED, after.state.value, code)
    desk.tally.flush()


def worker_id() -> str:
    """Who holds a lease: for people who read the ledger."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _run_claimed(desk: Desk, drain: Drain, solve: Sequence[str]) -> None:
    job_id = desk.claim.job_id
    try:
        if settle_from_journal(desk.journal, desk.ledger, job_id, desk.claim.run):
            # An earlier attempt committed, and died before it told the ledger.
            return
    except StorageUnavailable as error:
        # No fault of the job's, so the attempt does not count, else an outage of minutes would end
        # every job that waits. It rests until the reconciler lets workers take it again.
        _log.warning("%s cannot begin: %s", job_id, error)
        desk.ledger.release(job_id, desk.claim.fence, rests=True)
        return
    lease = Lease(desk.ledger, desk.claim, desk.settings.lease_seconds)
    try:
        spec = JobSpec.model_validate(desk.record.spec)
    except ValidationError as error:
        # Accepted by another release than this one.
        failure = InvalidSpec(f"This worker's release does not know the job: {error}.")
        conclude(desk, lease, Ended(EXIT_FAILED, error=failure.as_dict()))
        return
    if drain.started:
        give_back(desk)
        return
    try:
        ended = _solve(desk, lease, spec, drain, solve)
    except ScratchUnavailable as error:
        ended = Ended(EXIT_FAILED, error=error.as_dict())
    conclude(desk, lease, ended)


def _solve(desk: Desk, lease: Lease, spec: JobSpec, drain: Drain, argv: Sequence[str]) -> Ended:
    """Run the solve to its end, in a scratch directory that goes with it."""
    claiming = None
    if spec.runtime.max_workers > 1:
        claim = desk.claim
        claiming = Claiming(desk.ledger.seats, desk.doorbell, claim.job_id, claim.fence)
    with scratch_directory(desk.settings.scratch_directory) as directory:
        leave_mark(directory, desk.claim)
        files = directory / "files"
        files.mkdir()
        request = Request(
            job_id=desk.claim.job_id,
            spec=following(spec, desk.record.plan),
            workspace_uri=desk.journal.workspace(desk.claim.job_id).uri,
            scratch=str(files),
            part="lead" if claiming is not None else "alone",
            traceparent=TRACEPARENT.get(),
            log_format=desk.settings.log_format,
        )
        left = desk.claim.seconds_left
        with contextlib.closing(SolveProcess(request, argv)) as process:
            return Supervision(
                process, lease, desk.settings, drain, desk.tally, desk.tracing, left, claiming
            ).watch()
