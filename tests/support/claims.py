"""Claims of jobs by tests that know which job is next."""

from __future__ import annotations

from api.jobs.ledger import Ledger
from api.jobs.limits import RunningLimits
from api.jobs.record import Claim, Refusal


def claim_job(
    ledger: Ledger,
    job_id: str,
    worker_id: str,
    lease_seconds: float,
    max_running: int | None = None,
) -> Claim | Refusal:
    """Take the next job, which must be this one, or learn why there is none.

    Jobs that rest after a failure are let go first, as a reconciler does after a while.
    """
    ledger.end_rests(0.0, 1000)
    claim = ledger.claim(worker_id, lease_seconds, RunningLimits(max_running)).claim
    assert isinstance(claim, Refusal) or claim.job_id == job_id
    return claim
