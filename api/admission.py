"""What a request is admitted by: rate limits and quotas of tenants, and outputs of jobs.

A request over a limit is answered with 429, a job whose output another one has with 409. All are
noted in the ledger, so they hold over all API processes. Each is checked and taken in one step, so
that two requests at the same time cannot both take the last place, or one output.
"""

from __future__ import annotations

import math

from api.jobs.limits import TenantLimits
from api.jobs.record import place_of
from api.problems import conflict, too_many
from api.services import Services
from strucprune_core.errors import InvalidSpec

# A place becomes free when a job ends, which takes minutes.
QUOTA_RETRY_AFTER_SECONDS = 60
# A few passes of the reconciler.
ARCHIVE_RETRY_AFTER_SECONDS = 15


class OutputInUse(InvalidSpec):
    """Another job, which has not ended, publishes to the same place."""

    code = "output_in_use"


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


def admit_job(services: Services, tenant: str, job_id: str, output_uri: str) -> None:
    """Reserve a place and the output for a job that is about to be queued.

    See `Ledger.reserve` and `Ledger.reserve_output`.

    Raises:
        ApiError: 429, if the tenant has reached its limit of jobs that have not ended, or of what
            the ledger keeps of its jobs; 409, if another job that has not ended has the output.
        LedgerUnavailable: the ledger does not answer.
    """
    limits = services.settings.limits_of(tenant)
    _check_kept(limits, *services.ledger.kept(tenant))
    output = place_of(output_uri)
    other = services.ledger.reserve_output(job_id, output)
    if other is not None:
        raise conflict(output_in_use(services, tenant, other))
    limit = limits.open_jobs
    if limit is None or services.ledger.reserve(tenant, job_id, limit):
        return
    services.ledger.free_output(job_id, output)
    raise too_many(
        "quota_exceeded",
        f"Your organisation has {limit} jobs that have not ended, which is its limit. "
        "Wait for one to end, or cancel one.",
        QUOTA_RETRY_AFTER_SECONDS,
    )


def output_issues(services: Services, tenant: str, output_uri: str) -> list[OutputInUse]:
    """What is wrong with a job's output at present. Reserves nothing."""
    other = services.ledger.output_holder(place_of(output_uri))
    return [] if other is None else [output_in_use(services, tenant, other)]


def output_in_use(services: Services, tenant: str, other: str) -> OutputInUse:
    """The refusal of an output that job `other` has. Names that job to its own tenant only."""
    record = services.ledger.get(other)
    if record is None or record.tenant != tenant:
        return OutputInUse(
            "this output prefix is in use",
            field="output.uri_prefix",
            remedy="Choose another prefix, neither above nor below this one.",
        )
    place = record.spec["output"]["uri_prefix"]
    return OutputInUse(
        f"the job {other}, which has not ended ({record.state.value}), publishes to {place}",
        field="output.uri_prefix",
        remedy="Choose a prefix neither above nor below that one, or wait for the job to end, or "
        "cancel it.",
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
