"""Error answers: RFC 9457 problem details, for every error that the API can return."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from api.request import EVENT_ID, JOB_ID, LABEL, JobRequest
from strucprune_core.errors import AccessDenied, Mend, StrucPruneError
from strucprune_core.plain_errors import plain_message
from strucprune_core.plan.device_table import DATE
from strucprune_core.spec import Unfit

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
# `Retry-After` when Redis or the object store does not answer.
RETRY_AFTER_SECONDS = 5
# Errors in one answer. People fix the first few; a hostile body has tens of thousands.
MAX_ERRORS = 100
# Longest text about a request or a file: both contain names that a sender chose.
_MAX_DETAIL_LENGTH = 1000
_MAX_POINTER_LENGTH = 500


# What to write where a text must match this regular expression.
PATTERNS = {
    JOB_ID: "Write the id of a job: job_ and 32 hexadecimal digits.",
    EVENT_ID: "Write the id of an event or a line, as an answer had it; 0 for the beginning.",
    DATE: "Write a date like 2026-01-31.",
    LABEL: "Write a label as name=value.",
}


class FieldError(BaseModel):
    """One thing that is wrong with the request."""

    pointer: str | None = Field(
        default=None, description="JSON pointer into the body, e.g. /pruning/sparsity."
    )
    parameter: str | None = Field(default=None, description="Query, path or header parameter.")
    code: str
    detail: str
    mends: list[Mend] = Field(
        default_factory=list,
        description="Changes of one field each (a dotted path), of which any cures it; the value "
        "null leaves the field out. Empty if none is known.",
    )


class Problem(BaseModel):
    """Problem details (RFC 9457). `code` is stable; `title` and `detail` are for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldError] = Field(default_factory=list)


class ApiError(HTTPException):
    """Ends a request with a problem answer."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.errors = list(errors)


def too_many(code: str, detail: str, seconds: int = RETRY_AFTER_SECONDS) -> ApiError:
    """The answer to a tenant that asks for more than its limit: 429."""
    headers = {"Retry-After": str(seconds)}
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, code, detail, headers=headers)


def field_error(error: StrucPruneError) -> FieldError:
    """A library error as an entry of a problem's `errors`. Its field becomes a JSON pointer."""
    pointer = _pointer(error.field.split(".")) if error.field else None
    sentence = error.message if error.message.endswith(".") else f"{error.message}."
    detail = f"{sentence} {error.remedy}" if error.remedy else sentence
    return FieldError(
        pointer=pointer,
        code=error.code,
        detail=_cut(detail, _MAX_DETAIL_LENGTH),
        mends=list(error.mends),
    )


def invalid(errors: Sequence[StrucPruneError]) -> ApiError:
    """The answer to a job that cannot work: 422, or 503 if the client may try again later."""
    details = [field_error(error) for error in errors]
    if any(error.retryable for error in errors):
        first = next(error for error in errors if error.retryable)
        return unavailable(first.code, str(first), details)
    count = f"{len(errors)} problems" if len(errors) > 1 else "a problem"
    return ApiError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        errors[0].code,
        f"The job has {count}: {details[0].detail}",
        errors=details,
    )


def conflict(error: StrucPruneError) -> ApiError:
    """The answer to a request that something else stands against at present: 409."""
    detail = field_error(error)
    return ApiError(
        HTTPStatus.CONFLICT,
        error.code,
        f"The job has a problem: {detail.detail}",
        errors=[detail],
    )


def install(app: FastAPI) -> None:
    """Make the app answer every failure with a problem."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(StrucPruneError, _on_library_error)
    app.add_exception_handler(Exception, _on_bug)


def response(request: Request, error: HTTPException) -> Response:
    """The response for an error."""
    status = HTTPStatus(error.status_code)
    problem = Problem(
        title=status.phrase,
        status=status,
        detail=error.detail,
        code=error.code if isinstance(error, ApiError) else status.name.lower(),
        request_id=getattr(request.state, "request_id", ""),
        errors=error.errors if isinstance(error, ApiError) else [],
    )
    return JSONResponse(
        problem.model_dump(mode="json"), status, dict(error.headers or {}), media_type=MEDIA_TYPE
    )


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {**(error.headers or {}), "Allow": ", ".join(_methods(request))}
    return response(request, error)


def _methods(request: Request) -> list[str]:
    """All methods of the requested path. The framework knows those of its first route only."""
    routes = list(_routes(request.app.routes))
    hit = (route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    path = next(hit, None)
    return sorted({name for route in routes if route.path == path for name in route.methods or ()})


def _routes(found: Sequence[BaseRoute]) -> Iterator[Route]:
    for route in found:
        inside = getattr(route, "original_router", None)  # of FastAPI's included routers
        if inside is not None:
            yield from _routes(inside.routes)
        elif isinstance(route, Route):
            yield route


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return response(
            request,
            ApiError(HTTPStatus.BAD_REQUEST, "malformed_json", "The body is not valid JSON."),
        )
    if any(item["loc"] == ("body",) and isinstance(item["input"], bytes | str) for item in found):
        # The framework parses a body only if its content type is JSON.
        return response(request, _not_json())
    return response(request, _malformed(found))


def unfinished(error: ValidationError, issues: Sequence[StrucPruneError]) -> ApiError:
    """The answer to a job's body that is not valid as a whole.

    Args:
        error: What is wrong with the body.
        issues: What is wrong with the parts of it that could be judged.
    """
    found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
    answer = _malformed(found)
    answer.errors += [field_error(issue) for issue in issues]
    return answer


def _malformed(found: Sequence[Mapping[str, Any]]) -> ApiError:
    # Unknown fields first: a misspelt name is an unknown field and a missing one.
    shown = sorted(found, key=lambda item: item["type"] != "extra_forbidden")[:MAX_ERRORS]
    errors = [_from_pydantic(item) for item in shown]
    where = errors[0].pointer or errors[0].parameter or "the request"
    detail = f"The request is not valid; first at {where}: {errors[0].detail}"
    if len(found) > len(shown):
        detail += f" Of {len(found):,} errors the first {len(shown)} are listed."
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "validation_failed", detail, errors=errors)


def _on_library_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StrucPruneError)  # noqa: S101 - for the type checker
    # If the service's own credentials are refused, that is an outage to the caller too.
    if error.retryable or isinstance(error, AccessDenied):
        _log.error("%s %s: %s", request.method, request.url.path, error)
        return response(request, unavailable(error.code, "A backing service does not answer."))
    return _on_bug(request, error)


def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "The service failed. Give its operator the request id to find the cause."
    return response(request, ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail))


def unavailable(
    code: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    seconds: int | None = None,
) -> ApiError:
    """The answer of a service that cannot serve the request now: 503."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        code,
        detail,
        errors=errors,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS if seconds is None else seconds)},
    )


def _from_pydantic(item: Mapping[str, Any]) -> FieldError:
    source, *path = item["loc"]
    if source == "body":
        # pydantic marks a wrong key of a dictionary by a last step "[key]".
        steps = [str(step) for step in path if step != "[key]"]
        pointer = _cut(_pointer(steps), _MAX_POINTER_LENGTH)
        detail, mends = _words(item, steps), _mends(item, steps)
        return FieldError(pointer=pointer, code=item["type"], detail=detail, mends=mends)
    parameter = _cut(".".join(str(step) for step in path), _MAX_POINTER_LENGTH)
    return FieldError(parameter=parameter, code=item["type"], detail=_words(item, []))


def _mends(item: Mapping[str, Any], steps: Sequence[str]) -> list[Mend]:
    cause = item.get("ctx", {}).get("error")
    return cause.mends_in(".".join(steps)) if isinstance(cause, Unfit) else []


def _words(item: Mapping[str, Any], steps: Sequence[str]) -> str:
    """What is wrong, and the cure."""
    if item["type"] != "extra_forbidden":
        return _cut(plain_message(item, PATTERNS), _MAX_DETAIL_LENGTH)
    near = difflib.get_close_matches(steps[-1], _known_fields(steps[:-1]), n=1)
    hint = f"is '{near[0]}' meant?" if near else "see /docs for the fields."
    return f"There is no such field; {hint}"


def _known_fields(steps: Sequence[str]) -> list[str]:
    """Names of the fields in one section of a job."""
    section: type[BaseModel] = JobRequest
    for step in steps:
        if step.isdecimal():  # a place in a list of sections, which the step before has named
            continue
        section = next(_models_in(section.model_fields[step].annotation))
    return list(section.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation holds: a section may be absent, or one of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _not_json() -> ApiError:
    return ApiError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "The body is not declared to be JSON. Send the header `Content-Type: application/json`.",
    )


def _pointer(steps: Sequence[str]) -> str:
    """A JSON pointer (RFC 6901); the whole document is ''."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
