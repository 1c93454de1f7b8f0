"""Authentication: turns a bearer key into a principal, which routes name in their signature."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.admission import admit_request
from api.callers import NotCached, Principal
from api.problems import ApiError
from api.services import Services, Wired
from strucprune_core.access.keys import Scope

_bearer = HTTPBearer(auto_error=False, description="An API key.")


def _require(scope: Scope) -> Callable[..., Coroutine[Any, Any, Principal]]:
    async def principal(
        services: Wired,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        if credentials is None:
            raise _unauthorized("Send an API key: `Authorization: Bearer <key>`.", "Bearer")
        caller = await _caller(services, credentials.credentials)
        if caller is None:
            raise no_longer_valid()
        if scope not in caller.scopes:
            raise ApiError(
                HTTPStatus.FORBIDDEN, "insufficient_scope", f"The API key lacks scope '{scope}'."
            )
        if services.settings.limits_of(caller.tenant).requests_per_second is not None:
            await run_in_threadpool(admit_request, services, caller.tenant)
        return caller

    return principal


async def _caller(services: Services, key: str) -> Principal | None:
    # Most keys are cached, and a thread costs more than looking them up.
    try:
        return services.callers.authenticate(key, cached_only=True)
    except NotCached:
        return await run_in_threadpool(services.callers.authenticate, key)


def no_longer_valid() -> ApiError:
    """The answer to a key that is unknown, has expired or was revoked."""
    return _unauthorized(
        "The API key is unknown, has expired or was revoked.", 'Bearer error="invalid_token"'
    )


def _unauthorized(detail: str, challenge: str) -> ApiError:
    headers = {"WWW-Authenticate": challenge}
    return ApiError(HTTPStatus.UNAUTHORIZED, "unauthorized", detail, headers=headers)


Reader = Annotated[Principal, Depends(_require("jobs:read"))]
Operator = Annotated[Principal, Depends(_require("admin"))]
Writer = Annotated[Principal, Depends(_require("jobs:write"))]
