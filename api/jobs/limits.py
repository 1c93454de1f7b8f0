"""What each tenant may have and do at once: settings that the API and the worker share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings

from strucprune_core.access.keys import Tenant


class TenantLimits(BaseModel):
    """Limits of one tenant; None is no limit.

    Attributes:
        open_jobs: Jobs that are not over (queued, running, paused, …).
        running_jobs: Jobs that workers hold; others wait in the queue meanwhile. Workers that only
            help with one of them do not count: they leave once another tenant's job waits.
        requests_per_second: Requests to the API, over all of its processes.
        request_burst: Requests that may come at once after a quiet while.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    open_jobs: int | None = Field(default=None, ge=0)
    running_jobs: int | None = Field(default=None, ge=0)
    requests_per_second: float | None = Field(default=None, gt=0)
    request_burst: int = Field(default=50, ge=1)


class LimitSettings(BaseSettings):
    """The part of a program's settings that is about limits.

    Attributes:
        limits: JSON object, `TenantLimits` of every tenant that has none of its own.
        tenant_limits: JSON object, tenant -> `TenantLimits`, which replace `limits` as a whole.
    """

    limits: TenantLimits = TenantLimits()
    tenant_limits: dict[Tenant, TenantLimits] = Field(default_factory=dict)

    def limits_of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        return self.tenant_limits.get(tenant, self.limits)
