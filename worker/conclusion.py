"""What the end of a solve means for its job. The journal's outcome is the commit; ledger follows.

result                              -> succeeded (even if a stop was asked for: it came too late)
lost                                -> nothing: the job is somebody else's
final failure, deadline             -> failed
cancelled                           -> cancelled
paused, drained, stopped by another -> given back; the attempt does not count
retryable failure, crash            -> queued again while attempts are left, else failed
stall                               -> the same; failed if it is the third in a row at one place
out of memory                       -> queued again once, with a smaller plan, else failed
no scratch, and there still is none -> given back; the attempt does not count
"""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass
from typing import Any

from api.jobs.doorbell import Doorbell
from api.jobs.ends import commit
from api.jobs.journal import Journal, Outcome
from api.jobs.ledger import Finished, Ledger
from api.jobs.meters import Tally
from api.jobs.record import Claim, JobRecord, Signal
from api.jobs.state import JobState
from api.jobs.tracing import Tracing
from strucprune_core.errors import OutOfMemory, ScratchUnavailable, Stopped
from strucprune_core.spec import JobSpec
from worker import failures
from worker.lease import Lease
from worker.memory_retry import smaller_plan
from worker.protocol import EXIT_STOPPED
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stalls import after_stall
from worker.supervision import Ended, StopReason

_log = logging.getLogger(__name__)

# Somebody else's SIGTERM stopped the solve: a whole control group is told to end, and the solve may
# hear it before we do, or before it listens at all. No fault of the job's.
STOPPED = (EXIT_STOPPED, -signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything needed to conclude one claimed job."""

    ledger: Ledger
    journal: Journal
    doorbell: Doorbell
    settings: Settings
    record: JobRecord
    claim: Claim
    tally: Tally
    tracing: Tracing
    scratch: Scratch


def conclude(desk: Desk, lease: Lease, ended: Ended) -> None:
    """Write down how the job goes on.

    Raises:
        StrucPruneError: journal or ledger did not answer. The lease will expire, and the reconciler
            finish what was begun here.
    """
    if ended.stop is StopReason.LOST or lease.beat() is Signal.LOST:
        # Also keeps a worker that slept through its lease from failing another one's attempt.
        _log.warning("%s is no longer ours", desk.claim.job_id)
        return
    if ended.summary is not None:
        _finish(desk, JobState.SUCCEEDED, summary=ended.summary)
        return
    error = failure_of(ended, desk)
    if error is not None and not error["retryable"]:
        _finish(desk, JobState.FAILED, error=error)
    elif ended.stop is StopReason.CANCEL:
        _finish(desk, JobState.CANCELLED)
    elif error is None:
        give_back(desk)
    elif error["code"] == OutOfMemory.code:
        retry_smaller(desk, error)
    elif error["code"] == failures.SolveStalled.code:
        _retry_stalled(desk, error, ended)
    elif error["code"] == ScratchUnavailable.code and desk.scratch.unfit(desk.record.scratch_bytes):
        # What the job itself had taken is free again: the worker is at fault, not the job.
        give_back(desk, error)
    else:
        retry(desk, error)


def failure_of(ended: Ended, desk: Desk) -> dict[str, Any] | None:
    """The failure that a solve ended with; None if it was stopped without one."""
    match ended.stop:
        case StopReason.DEADLINE:
            allowed = desk.record.spec["runtime"]["deadline_seconds"]
            return failures.deadline(allowed, ended.progress).as_dict()
        case StopReason.STALLED:
            return failures.stalled(desk.settings.stall_seconds, ended.progress).as_dict()
    if ended.error is not None and ended.error["code"] != Stopped.code:
        return ended.error
    if ended.stop is not None or ended.returncode in STOPPED:
        return None
    crash = failures.crash(ended.returncode, ended.progress, oom_killed=ended.oom_killed)
    return crash.as_dict()


def give_back(desk: Desk, error: dict[str, Any] | None = None) -> None:
    """Return the job without using up the attempt.

    `error` is what the job says of that, if anything went wrong.
    """
    if not desk.ledger.release(desk.claim.job_id, desk.claim.fence, error):
        return
    after = desk.ledger.get(desk.claim.job_id)
    if after is not None and after.state is JobState.CANCELLED:
        # A cancellation that came after the pause or the drain.
        _commit(desk, _outcome(desk, JobState.CANCELLED))


def retry_smaller(desk: Desk, error: dict[str, Any]) -> None:
    """Leave it to another attempt that needs less memory; the second time, fail.

    Raises:
        StrucPruneError: journal or ledger did not answer.
    """
    plan = smaller_plan(JobSpec.model_validate(desk.record.spec), desk.record.plan)
    if plan is None:
        _finish(desk, JobState.FAILED, error={**error, "retryable": False})
    else:
        retry(desk, error, plan)


def _retry_stalled(desk: Desk, error: dict[str, Any], ended: Ended) -> None:
    """Leave it to another attempt, unless attempts have stalled there too often."""
    plan = after_stall(desk.record.plan, ended.progress)
    if plan is None:
        _finish(desk, JobState.FAILED, error={**error, "retryable": False})
    else:
        retry(desk, error, plan)


def retry(desk: Desk, error: dict[str, Any], plan: dict[str, Any] | None = None) -> None:
    """Leave a retryable failure to another attempt, or fail if there are none left.

    The job rests until the reconciler lets workers take it again, which is the back-off.
    """
    _log.warning("%s failed for now: %s", desk.claim.job_id, error)
    state = desk.ledger.retry_later(desk.claim.job_id, desk.claim.fence, error, plan)
    if state is JobState.FAILED:
        _commit(desk, _outcome(desk, state, error=error))
    elif state is JobState.CANCELLED:
        _commit(desk, _outcome(desk, state))


def _finish(
    desk: Desk,
    state: Finished,
    *,
    error: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> None:
    """Commit an outcome, then tell the ledger; an earlier outcome stands."""
    outcome = _outcome(desk, state, error=error, summary=summary)
    job_id, fence = desk.claim.job_id, desk.claim.fence
    written = desk.journal.write_outcome(job_id, outcome)
    if written and desk.ledger.finish(job_id, fence, state, error=error, summary=summary):
        _log.info("%s: %s", job_id, state.value)
        return
    _commit(desk, outcome)


def _commit(desk: Desk, outcome: Outcome) -> None:
    stands = commit(desk.journal, desk.ledger, desk.claim.job_id, outcome)
    _log.info("%s: %s", desk.claim.job_id, stands.state.value)


def _outcome(
    desk: Desk,
    state: Finished,
    *,
    error: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> Outcome:
    return Outcome(
        state=state,
        error=error,
        summary=summary,
        run=desk.claim.run,
        fence=desk.claim.fence,
        finished_at=time.time(),
    )
