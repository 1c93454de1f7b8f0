"""Answers one call for help: take a seat at a job that another worker leads, and do units of it.

The job does not end here, however this solve ends. Units reserved here become free with the seat,
and the leader or another helper does them. A unit that fails on every worker fails in the leader.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Sequence

from pydantic import ValidationError

from api.jobs import logs
from api.jobs.doorbell import ring_if_missing
from api.jobs.ledger import LedgerUnavailable
from api.jobs.meters import HELP, Tally
from api.jobs.record import JobRecord
from api.jobs.seats import Place
from api.jobs.tracing import TRACEPARENT
from strucprune_core.errors import StrucPruneError
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.spec import JobSpec
from worker.child import SOLVE, SolveProcess
from worker.conclusion import STOPPED
from worker.execution import Services
from worker.lease import Seat
from worker.memory_retry import following
from worker.presence import Presence
from worker.protocol import EXIT_DONE, Request
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain
from worker.supervision import Ended, StopReason, Supervision
from worker.unit_reservations import UnitReservations

_log = logging.getLogger(__name__)


def help_job(
    job_id: str,
    services: Services,
    settings: Settings,
    drain: Drain,
    scratch: Scratch,
    solve: Sequence[str] = SOLVE,
) -> None:
    """Answer one call for help. Returns when this worker has nothing more to do for the job.

    Raises nothing: seats lapse, and the reconciler rings again.
    """
    if drain.started:
        return
    ledger = services.ledger
    unfit = scratch.unfit()
    if unfit is not None:
        _log.warning("cannot help with %s: %s", job_id, unfit.message)
        services.doorbell.ring_for_help(job_id, 1)
        scratch.rest(unfit, Tally(ledger))
        return
    try:
        place = ledger.seats.take(
            *(job_id, secrets.token_hex(8), settings.lease_seconds),
            *(settings.running_limits, scratch.free_bytes()),
        )
        record = ledger.get(job_id) if place is not None else None
    except LedgerUnavailable as error:
        _log.error("cannot help with %s: %s", job_id, error)
        return
    if place is None or record is None:
        _log.info("job %s needs no help, or another job is queued", job_id)
        _ring_for_others(services)
        return
    seat = Seat(ledger, place, settings.lease_seconds)
    tally = Tally(ledger)
    about: dict[str, str | int | float | bool] = {
        "job.id": job_id,
        "job.run": place.run,
        "job.attempt": place.attempt,
    }
    failed = True
    with logs.about_job(job_id), services.tracing.span("help", record.traceparent, about):
        _log.info("job %s: helping with attempt %d", job_id, place.attempt)
        try:
            ended = _assist(place, seat, record, services, settings, drain, tally, scratch, solve)
            # The failure of a worker without disk space says nothing about the job.
            failed = has_failed(ended) and scratch.unfit() is None
        except (StrucPruneError, ValidationError):
            _log.exception("job %s: helping failed", job_id)
        finally:
            seat.leave(failed=failed)
            tally.count(HELP, "failed" if failed else "done")
            tally.flush()
            _log.info("job %s: helping ended%s", job_id, ", failed" if failed else "")
            _ring_for_others(services)


def _ring_for_others(services: Services) -> None:
    """Ring for queued jobs, whose doorbells may be lost: this worker is free for them now."""
    with contextlib.suppress(LedgerUnavailable):
        ring_if_missing(services.ledger, services.doorbell)


def has_failed(ended: Ended) -> bool:
    """Whether a helper failed. After a few failures an attempt gets no more helpers."""
    if ended.stop is not None:
        return ended.stop is StopReason.STALLED
    return ended.returncode not in (EXIT_DONE, *STOPPED)


def _assist(
    place: Place,
    seat: Seat,
    record: JobRecord,
    services: Services,
    settings: Settings,
    drain: Drain,
    tally: Tally,
    scratch: Scratch,
    argv: Sequence[str],
) -> Ended:
    """Run the helping solve to its end."""
    spec = JobSpec.model_validate(record.spec)
    reservations = UnitReservations(
        services.ledger.seats,
        services.doorbell,
        place.job_id,
        place.fence,
        place.seat,
        scratch.free_bytes,
        settings.running_limits,
    )
    with scratch_directory(settings.scratch_directory) as directory:
        request = Request(
            job_id=place.job_id,
            spec=following(spec, record.plan),
            workspace_uri=services.journal.workspace(record.workspace_id).uri,
            scratch=str(directory),
            part="help",
            traceparent=TRACEPARENT.get(),
            log_format=settings.log_format,
            task_downloads=settings.task_downloads,
            rates=services.rates,
        )
        with contextlib.closing(SolveProcess(request, argv)) as process:
            return Supervision(
                process,
                seat,
                settings,
                drain,
                tally,
                services.tracing,
                None,
                reservations,
                Presence(services.ledger, services.name),
            ).watch()
