"""The OpenAPI document: adds headers and problems to the responses of routes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from api.problems import MEDIA_TYPE, Problem

Responses = dict[int | str, dict[str, Any]]

_PROBLEM = "#/components/schemas/Problem"
_HEADERS = {
    "ETag": "Version of the job; send it as If-None-Match.",
    "Idempotency-Replayed": "`true` if an earlier request had already submitted the job.",
    "Location": "Path of the job.",
    "Preference-Applied": "The wait that was applied.",
    "Retry-After": "Seconds after which to ask or try again.",
}
# Headers that only some answers have.
_AT_TIMES = {"Idempotency-Replayed", "Preference-Applied"}


def headers(*names: str) -> dict[str, Any]:
    """The headers of a response, for `responses=` of a route."""
    return {"headers": {name: _header(name) for name in names}}


def _header(name: str) -> dict[str, Any]:
    return {
        "description": _HEADERS[name],
        "required": name not in _AT_TIMES,
        "schema": {"type": "string"},
    }


def problems(*statuses: int) -> Responses:
    """The problems that a route may answer, for its `responses=`."""
    return {
        status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make the document describe every error as a problem, instead of FastAPI's own errors."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without null: a parameter may be left out, but cannot be null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            if "security" in operation:
                # Every request with a key counts against its tenant's rate limit.
                operation["responses"]["429"] = {
                    "description": HTTPStatus.TOO_MANY_REQUESTS.phrase,
                    **headers("Retry-After"),
                }
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")):
                    answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": _PROBLEM}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document
