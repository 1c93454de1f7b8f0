"""Probes: whether the process is alive, and whether it can accept jobs."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import APIRouter

from api.openapi import problems
from api.problems import RETRY_AFTER_SECONDS, ApiError
from api.services import Wired
from api.views import Health
from strucprune_core.errors import StrucPruneError

_log = logging.getLogger(__name__)

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers. Uses no other service, so that their outages restart nothing."""
    return Health()


@router.get("/readyz", responses=problems(503))
def readyz(services: Wired) -> Health:
    """The ledger takes new data and the journal answers, so jobs can be accepted."""
    try:
        services.ledger.probe()
        services.journal.ping()
    except StrucPruneError as error:
        _log.warning("not ready: %s", error)
        raise ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_ready",
            f"Not ready: {error.code}.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        ) from error
    return Health()
