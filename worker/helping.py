"""One call for help answered: take a seat at a job that another worker leads, and do units of it.

However this ends, it is no end of the job's: what was claimed here becomes free with the seat, and
the leader, or another helper, does it. A unit that fails here and would fail anywhere fails there.
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
from worker.claiming import Claiming
from worker.conclusion import STOPPED
from worker.execution import Services
from worker.lease import Seat
from worker.memory_retry import following
from worker.protocol import EXIT_DONE, Request
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain
from worker.supervision import Ended, StopReason, Supervision

_log = logging.getLogger(__name__)


def help_job(
    job_id: str,
    services: Services,
    settings: Settings,
    drain: Drain,
    scratch: Scratch,
    solve: Sequence[str] = SOLVE,
) -> None:
    """Answer one call for help; returns when there is nothing more to do here.

    Nothing is raised: seats lapse, and the reconciler calls again.
    """
    if drain.started:
        return
    ledger = services.ledger
    unfit = scratch.unfit()
    if unfit is not None:
        _log.warning("the help for %s is left to other workers: %s", job_id, unfit.message)
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
        _log.info("%s wants no help (any more), or another job waits", job_id)
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
        _log.info("helping with %s, attempt %d", job_id, place.attempt)
        try:
            ended = _assist(place, seat, record, services, settings, drain, tally, scratch, solve)
            # A worker without scratch must not keep others from helping.
            failed = has_failed(ended) and scratch.unfit() is None
        except (StrucPruneError, ValidationError):
            _log.exception("could not help with %s", job_id)
        finally:
            seat.leave(failed=failed)
            tally.count(HELP, "failed" if failed else "done")
            tally.flush()
            _log.info("no longer helping with %s%s", job_id, ": failed" if failed else "")
            _ring_for_others(services)


def _ring_for_others(services: Services) -> None:
    """Let a job that this worker made room for have it, also if its doorbell got lost."""
    with contextlib.suppress(LedgerUnavailable):
        ring_if_missing(services.ledger, services.doorbell)


def has_failed(ended: Ended) -> bool:
    """Whether a helper's end should keep others from trying the same all too often."""
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
    """Run a solve that helps, to its end."""
    spec = JobSpec.model_validate(record.spec)
    claiming = Claiming(
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
            workspace_uri=services.journal.workspace(place.job_id).uri,
            scratch=str(directory),
            part="help",
            traceparent=TRACEPARENT.get(),
            log_format=settings.log_format,
        )
        with contextlib.closing(SolveProcess(request, argv)) as process:
            return Supervision(
                process, seat, settings, drain, tally, services.tracing, None, claiming
            ).watch()
