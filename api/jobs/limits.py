"""Limits of tenants: settings that the API and the worker share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings

from api.jobs.record import Priority
from strucprune_core.access.keys import Tenant
from strucprune_core.spec import MAX_DEADLINE_SECONDS

_NO_LIMIT = -1


@dataclass(frozen=True, slots=True)
class RunningLimits:
    """How many jobs tenants may have running; None for any number.

    Attributes:
        default: For every tenant without a limit of its own.
        tenants: Tenant -> its own limit.
    """

    default: int | None = None
    tenants: Mapping[str, int | None] = field(default_factory=dict)

    def encode(self) -> str:
        """As the ledger's scripts read it."""
        own = {tenant: _number(most) for tenant, most in self.tenants.items()}
        return json.dumps({"default": _number(self.default), "tenants": own})


def _number(most: int | None) -> int:
    return _NO_LIMIT if most is None else most


@dataclass(frozen=True, slots=True)
class KeptLimits:
    """How many jobs and bytes tenants may have in the ledger; None for any number.

    Attributes:
        default: For every tenant without limits of its own.
        tenants: Tenant -> its own limits.
    """

    default: tuple[int | None, int | None] = (None, None)
    tenants: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def encode(self) -> str:
        """As the ledger's scripts read it."""
        own = {tenant: [*map(_number, most)] for tenant, most in self.tenants.items()}
        return json.dumps({"default": [*map(_number, self.default)], "tenants": own})


class TenantLimits(BaseModel):
    """Limits of one tenant; None for no limit.

    Attributes:
        kept_jobs: Jobs in the ledger, ended or not. The oldest ended jobs are archived in time:
            archived jobs can be read, retried and deleted, but are in no list.
        kept_bytes: Memory that all these jobs take.
        open_jobs: Jobs that have not ended (queued, running, paused, …).
        running_jobs: Jobs that workers hold; others stay queued meanwhile. Workers that only help
            with a job do not count: they leave once another job is queued.
        max_priority: The highest priority that its jobs may have. Priorities only order the jobs of
            one tenant.
        requests_per_second: Requests to the API, over all of its processes.
        request_burst: Requests that may come at once after a pause.
        event_streams: Event streams and waiting requests open at once, in each API process.
        model_bytes: Size of a job's model: its safetensors files together.
        scratch_bytes: Estimated space for temporary files of a job.
        deadline_seconds: Deadline of a job; one that names none gets this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept_jobs: int | None = Field(default=10_000, ge=1)
    kept_bytes: int | None = Field(default=128 * 2**20, ge=2**20)
    open_jobs: int | None = Field(default=None, ge=0)
    running_jobs: int | None = Field(default=None, ge=0)
    max_priority: Priority = "high"
    requests_per_second: float | None = Field(default=None, gt=0)
    request_burst: int = Field(default=50, ge=1)
    event_streams: int = Field(default=1000, ge=0)
    model_bytes: int | None = Field(default=None, ge=1)
    scratch_bytes: int | None = Field(default=None, ge=1)
    deadline_seconds: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_SECONDS)


class LimitSettings(BaseSettings):
    """The settings of a program that are limits.

    Attributes:
        limits: JSON object, `TenantLimits` of every tenant without limits of its own.
        tenant_limits: JSON object, tenant -> `TenantLimits`, which replace `limits` as a whole.
        task_downloads: Whether jobs may name tasks of lm-evaluation-harness, whose data workers
            then download from a Hugging Face hub (or read from its cache, with `HF_HUB_OFFLINE`).
            If not, jobs bring task files.
    """

    limits: TenantLimits = TenantLimits()
    tenant_limits: dict[Tenant, TenantLimits] = Field(default_factory=dict)
    task_downloads: bool = False

    def limits_of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        return self.tenant_limits.get(tenant, self.limits)

    @property
    def kept_limits(self) -> KeptLimits:
        """How many jobs and bytes each tenant may have in the ledger."""
        own = {name: (one.kept_jobs, one.kept_bytes) for name, one in self.tenant_limits.items()}
        return KeptLimits((self.limits.kept_jobs, self.limits.kept_bytes), own)

    @property
    def running_limits(self) -> RunningLimits:
        """How many jobs each tenant may have running."""
        own = {tenant: limits.running_jobs for tenant, limits in self.tenant_limits.items()}
        return RunningLimits(self.limits.running_jobs, own)
