"""Quotas and rate limits of tenants. A request over a limit is answered with 429.

Both are counted in the ledger, so they hold over all API processes. Each is checked and taken in
one step, so that two requests at the same time cannot both take the last place.
"""

from __future__ import annotations

import math

from api.jobs.limits import TenantLimits
from api.problems import too_many
from api.services import Services

# A place becomes free when a job ends, which takes minutes.
QUOTA_RETRY_AFTER_SECONDS = 60
# A few passes of the reconciler.
ARCHIVE_RETRY_AFTER_SECONDS = 15


def admit_request(services: Services, tenant: str) -> None:
    """Count a request against the tenant's rate limit.

    Raises:
        ApiError: 429, with the seconds until the next request is allowed.
        LedgerUnavailable: the tenant has a limit, and the ledger does not answer.
    """
    limits = services.settings.limits_of(tenant)
    if limits.requests_per_second is None:
        return
    wait = services.ledger.take_token(tenant, limits.requests_per_second, limits.request_burst)
    if wait > 0:
        raise too_many(
            "rate_limited",
            f"Over {limits.requests_per_second:g} requests a second. Send fewer; "
            "`Prefer: wait` and event streams report changes without polling.",
            math.ceil(wait),
        )


def admit_job(services: Services, tenant: str, job_id: str) -> None:
    """Reserve a place for a job that is about to be queued; see `Ledger.reserve`.

    Raises:
        ApiError: 429, if the tenant has reached its limit of jobs that have not ended, or of what
            the ledger keeps of its jobs.
        LedgerUnavailable: the ledger does not answer.
    """
    limits = services.settings.limits_of(tenant)
    _check_kept(limits, *services.ledger.kept(tenant))
    limit = limits.open_jobs
    if limit is None or services.ledger.reserve(tenant, job_id, limit):
        return
    raise too_many(
        "quota_exceeded",
        f"Your organisation has {limit} jobs that have not ended, which is its limit. "
        "Wait for one to end, or cancel one.",
        QUOTA_RETRY_AFTER_SECONDS,
    )


def _check_kept(limits: TenantLimits, jobs: int, size_bytes: int) -> None:
    """Check without a reservation: requests at the same time exceed this limit only by little."""
    for most, has in ((limits.kept_jobs, jobs), (limits.kept_bytes, size_bytes)):
        if most is not None and has >= most:
            raise too_many(
                "quota_exceeded",
                "Your organisation has reached its limit of jobs that the service keeps. Jobs that "
                "have ended are moved to the archive within seconds. If none has ended, wait for "
                "one, or cancel one.",
                ARCHIVE_RETRY_AFTER_SECONDS,
            )
