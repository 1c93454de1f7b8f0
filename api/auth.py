"""Who is calling: a bearer key, turned into a principal that routes name in their signature."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.admission import admit_request
from api.keys import hash_key
from api.problems import ApiError
from api.services import Wired
from api.settings import ApiKey, Scope, Settings

_bearer = HTTPBearer(auto_error=False, description="An API key.")


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    tenant: str
    scopes: frozenset[Scope]


def authenticate(settings: Settings, key: str) -> Principal | None:
    """The principal of a key, or None. Takes the same time wherever the key differs."""
    digest = hash_key(key, settings.key_pepper.get_secret_value())
    found: ApiKey | None = None
    for candidate in settings.api_keys:
        if hmac.compare_digest(candidate.key_hmac, digest):
            found = candidate
    if found is None or (found.expires_at is not None and found.expires_at <= datetime.now(UTC)):
        return None
    return Principal(found.tenant, found.scopes)


def _require(scope: Scope) -> Callable[..., Principal]:
    def principal(
        services: Wired,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        if credentials is None:
            raise _unauthorized("Send an API key: `Authorization: Bearer <key>`.", "Bearer")
        caller = authenticate(services.settings, credentials.credentials)
        if caller is None:
            raise _unauthorized(
                "The API key is not known or has expired.", 'Bearer error="invalid_token"'
            )
        if scope not in caller.scopes:
            raise ApiError(
                HTTPStatus.FORBIDDEN, "insufficient_scope", f"The API key lacks scope '{scope}'."
            )
        admit_request(services, caller.tenant)
        return caller

    return principal


def _unauthorized(detail: str, challenge: str) -> ApiError:
    headers = {"WWW-Authenticate": challenge}
    return ApiError(HTTPStatus.UNAUTHORIZED, "unauthorized", detail, headers=headers)


Reader = Annotated[Principal, Depends(_require("jobs:read"))]
Writer = Annotated[Principal, Depends(_require("jobs:write"))]
