"""What each tenant may have and do: settings that the API and the worker share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings

from strucprune_core.access.keys import Tenant
from strucprune_core.spec import MAX_DEADLINE_SECONDS


class TenantLimits(BaseModel):
    """Limits of one tenant; None is no limit.

    Attributes:
        open_jobs: Jobs that are not over (queued, running, paused, …).
        running_jobs: Jobs that workers hold; others wait in the queue meanwhile. Workers that only
            help with one of them do not count: they leave once another tenant's job waits.
        requests_per_second: Requests to the API, over all of its processes.
        request_burst: Requests that may come at once after a quiet while.
        event_streams: Event streams and waiting requests open at once, in each API process.
        model_bytes: Size of a job's model: its safetensors files together.
        scratch_bytes: Room for temporary files of a job, as estimated.
        deadline_seconds: Deadline of a job; one that names none gets this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    open_jobs: int | None = Field(default=None, ge=0)
    running_jobs: int | None = Field(default=None, ge=0)
    requests_per_second: float | None = Field(default=None, gt=0)
    request_burst: int = Field(default=50, ge=1)
    event_streams: int = Field(default=1000, ge=0)
    model_bytes: int | None = Field(default=None, ge=1)
    scratch_bytes: int | None = Field(default=None, ge=1)
    deadline_seconds: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_SECONDS)


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
