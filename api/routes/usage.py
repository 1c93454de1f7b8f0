"""What the service has and does: the caller's quota, and for operators the workers."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import Operator, Reader
from api.lookup import Turn
from api.openapi import problems
from api.services import Wired
from api.views import Quota, QuotaUse, WorkerList, worker_view

router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/quota", responses=problems(401, 403, 503), dependencies=[Turn])
def get_quota(principal: Reader, services: Wired) -> Quota:
    """The limits of your organisation, and what it has of them at present."""
    open_jobs, running_jobs = services.ledger.open_and_held(principal.tenant)
    kept_jobs, kept_bytes = services.ledger.kept(principal.tenant)
    return Quota(
        limits=services.settings.limits_of(principal.tenant),
        use=QuotaUse(
            open_jobs=open_jobs,
            running_jobs=running_jobs,
            kept_jobs=kept_jobs,
            kept_bytes=kept_bytes,
        ),
    )


@router.get("/workers", responses=problems(401, 403, 503))
def get_workers(_: Operator, services: Wired) -> WorkerList:
    """All workers, with the jobs of any organisation that they are at. Needs the scope `admin`."""
    return WorkerList(data=[worker_view(worker) for worker in services.ledger.workers()])
