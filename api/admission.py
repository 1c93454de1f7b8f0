"""Whether a tenant may do one more thing now: quotas and rate limits, answered with 429.

Both are kept in the ledger, so they hold over all processes of the API, and both are checked and
taken in one step, so that requests at the same time do not all find the last place free.
"""

from __future__ import annotations

import math

from api.jobs.limits import TenantLimits
from api.problems import too_many
from api.services import Services

# A place is free when a job ends: minutes, not seconds.
QUOTA_RETRY_AFTER_SECONDS = 60
# Some passes of the reconciler.
ARCHIVE_RETRY_AFTER_SECONDS = 15


def admit_request(services: Services, tenant: str) -> None:
    """Count a request against the tenant's rate limit.

    Raises:
        ApiError: 429, with the seconds until the next one may come.
        LedgerUnavailable: the ledger does not answer, and there is a limit to keep.
    """
    limits = services.settings.limits_of(tenant)
    if limits.requests_per_second is None:
        return
    wait = services.ledger.take_token(tenant, limits.requests_per_second, limits.request_burst)
    if wait > 0:
        raise too_many(
            "rate_limited",
            f"Over {limits.requests_per_second:g} requests a second. Ask less often; "
            "`Prefer: wait` and event streams tell of changes without polling.",
            math.ceil(wait),
        )


def admit_job(services: Services, tenant: str, job_id: str) -> None:
    """Reserve a place for a job that is to be queued; see `Ledger.reserve`.

    Raises:
        ApiError: 429, if the tenant has as many jobs that are not over as it may, or as much of all
            its jobs in the ledger.
        LedgerUnavailable: the ledger does not answer.
    """
    limits = services.settings.limits_of(tenant)
    _check_kept(limits, *services.ledger.kept(tenant))
    limit = limits.open_jobs
    if limit is None or services.ledger.reserve(tenant, job_id, limit):
        return
    raise too_many(
        "quota_exceeded",
        f"There are {limit} jobs that are not over, which is as many as your organisation may "
        "have. Wait for one to end, or cancel one.",
        QUOTA_RETRY_AFTER_SECONDS,
    )


def _check_kept(limits: TenantLimits, jobs: int, size_bytes: int) -> None:
    """What many requests at once take beyond the limit is little, so nothing is reserved."""
    for most, has in ((limits.kept_jobs, jobs), (limits.kept_bytes, size_bytes)):
        if most is not None and has >= most:
            raise too_many(
                "quota_exceeded",
                "The service keeps as much of your organisation's jobs as it may. Jobs that are "
                "over are moved to the archive within seconds; if none is, wait for one to end, "
                "or cancel one.",
                ARCHIVE_RETRY_AFTER_SECONDS,
            )
