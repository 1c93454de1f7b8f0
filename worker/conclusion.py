"""What the end of a solve means for its job. The outcome is committed in the journal first.

result                              -> succeeded (a stop that was requested came too late)
lost                                -> nothing: another worker may hold the job
final failure, deadline             -> failed
cancelled                           -> cancelled
paused, drained, stopped by another -> given back; the attempt does not count
retryable failure, crash            -> queued again while attempts are left, else failed
stall                               -> the same; failed on the third in a row at one place
out of memory                       -> queued again once, with a smaller plan, else failed
no room for temporary files, still  -> given back; the attempt does not count
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
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.spec import JobSpec
from worker import failures
from worker.lease import Lease
from worker.memory_retry import smaller_plan
from worker.presence import Presence
from worker.protocol import EXIT_STOPPED
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stalls import after_stall
from worker.supervision import Ended, StopReason

_log = logging.getLogger(__name__)

# A SIGTERM that did not come from us stopped the solve. When a container ends, the signal may reach
# the solve before its supervisor, or before the solve handles it. The job is not at fault.
STOPPED = (EXIT_STOPPED, -signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a job that this worker has claimed, and the services that it needs."""

    ledger: Ledger
    journal: Journal
    doorbell: Doorbell
    settings: Settings
    record: JobRecord
    claim: Claim
    tally: Tally
    tracing: Tracing
    scratch: Scratch
    presence: Presence | None = None
    rates: DeviceRates | None = None


def conclude(attempt: Attempt, lease: Lease, ended: Ended) -> None:
    """End the job, queue it again or give it back, as the table above says.

    Raises:
        StrucPruneError: journal or ledger did not answer. Then the lease expires, and the
            reconciler completes what was begun here.
    """
    if ended.stop is StopReason.LOST or lease.beat() is Signal.LOST:
        # The beat also keeps a worker that slept through its lease from failing a later attempt.
        _log.warning("job %s: lease lost, the attempt is discarded", attempt.claim.job_id)
        return
    if ended.summary is not None:
        _finish(attempt, JobState.SUCCEEDED, summary=ended.summary)
        return
    error = failure_of(ended, attempt)
    if error is not None and not error["retryable"]:
        _finish(attempt, JobState.FAILED, error=error)
    elif ended.stop is StopReason.CANCEL:
        _finish(attempt, JobState.CANCELLED)
    elif error is None:
        give_back(attempt)
    elif error["code"] == OutOfMemory.code:
        retry_smaller(attempt, error)
    elif error["code"] == failures.SolveStalled.code:
        _retry_stalled(attempt, error, ended)
    elif error["code"] == ScratchUnavailable.code and _lacks_scratch(attempt):
        # The job's own files are gone, and there is still too little space: not the job's fault.
        give_back(attempt, error)
    else:
        retry(attempt, error)


def _lacks_scratch(attempt: Attempt) -> bool:
    return attempt.scratch.unfit(attempt.record.scratch_bytes) is not None


def failure_of(ended: Ended, attempt: Attempt) -> dict[str, Any] | None:
    """The failure that a solve ended with; None if it was only stopped."""
    match ended.stop:
        case StopReason.DEADLINE:
            allowed = attempt.record.spec["runtime"]["deadline_seconds"]
            return failures.deadline(allowed, ended.progress).as_dict()
        case StopReason.STALLED:
            return failures.stalled(attempt.settings.stall_seconds, ended.progress).as_dict()
    if ended.error is not None and ended.error["code"] != Stopped.code:
        return ended.error
    if ended.stop is not None or ended.returncode in STOPPED:
        return None
    crash = failures.crash(ended.returncode, ended.progress, oom_killed=ended.oom_killed)
    return crash.as_dict()


def give_back(attempt: Attempt, error: dict[str, Any] | None = None) -> None:
    """Release the job without counting the attempt.

    `error`, if any, becomes the job's error until it is claimed again.
    """
    if not attempt.ledger.release(attempt.claim.job_id, attempt.claim.fence, error):
        return
    after = attempt.ledger.get(attempt.claim.job_id)
    if after is not None and after.state is JobState.CANCELLED:
        # A cancellation that came after the pause or the drain.
        _commit(attempt, _outcome(attempt, JobState.CANCELLED))


def retry_smaller(attempt: Attempt, error: dict[str, Any]) -> None:
    """Queue the job again with a plan that needs less memory. The second time, fail it.

    Raises:
        StrucPruneError: journal or ledger did not answer.
    """
    plan = smaller_plan(JobSpec.model_validate(attempt.record.spec), attempt.record.plan)
    if plan is None:
        _finish(attempt, JobState.FAILED, error={**error, "retryable": False})
    else:
        retry(attempt, error, plan)


def _retry_stalled(attempt: Attempt, error: dict[str, Any], ended: Ended) -> None:
    """Queue the job again, unless its attempts have stalled at this place too often."""
    plan = after_stall(attempt.record.plan, ended.progress)
    if plan is None:
        _finish(attempt, JobState.FAILED, error={**error, "retryable": False})
    else:
        retry(attempt, error, plan)


def retry(attempt: Attempt, error: dict[str, Any], plan: dict[str, Any] | None = None) -> None:
    """Queue the job again after a retryable failure, or fail it if no attempts are left.

    The job rests until the reconciler lets workers claim it again: that is the back-off.
    """
    _log.warning("job %s: attempt failed, may be retried: %s", attempt.claim.job_id, error)
    state = attempt.ledger.retry_later(attempt.claim.job_id, attempt.claim.fence, error, plan)
    if state is JobState.FAILED:
        _commit(attempt, _outcome(attempt, state, error=error))
    elif state is JobState.CANCELLED:
        _commit(attempt, _outcome(attempt, state))


def _finish(
    attempt: Attempt,
    state: Finished,
    *,
    error: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> None:
    """Commit an outcome to the journal, then to the ledger. An earlier outcome stands."""
    outcome = _outcome(attempt, state, error=error, summary=summary)
    job_id, fence = attempt.claim.job_id, attempt.claim.fence
    written = attempt.journal.write_outcome(job_id, outcome)
    if written and attempt.ledger.finish(job_id, fence, state, error=error, summary=summary):
        _log.info("job %s: %s", job_id, state.value)
        return
    _commit(attempt, outcome)


def _commit(attempt: Attempt, outcome: Outcome) -> None:
    stands = commit(attempt.journal, attempt.ledger, attempt.claim.job_id, outcome)
    _log.info("job %s: %s", attempt.claim.job_id, stands.state.value)


def _outcome(
    attempt: Attempt,
    state: Finished,
    *,
    error: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> Outcome:
    return Outcome(
        state=state,
        error=error,
        summary=summary,
        run=attempt.claim.run,
        fence=attempt.claim.fence,
        finished_at=time.time(),
    )
