"""The web page at `/`, the API's documentation at `/docs`, and their files.

They need no key, since they hold no data of tenants.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Header, Response

from api.problems import ApiError
from api.web.files import WebFile, load_files

# Scripts and styles are our own files, requests go to this origin only, and strings never become
# code or markup. So a job's labels, log or report can do no harm on a page that holds a key.
_COMMON_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
CONTENT_SECURITY_POLICY = "; ".join(
    (
        *_COMMON_POLICY,
        "style-src 'self'",
        "img-src 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
# Swagger UI sets styles in elements, draws arrows from data: URLs, and makes markup of strings that
# it has cleaned. Its scripts are our own files too.
DOCS_POLICY = "; ".join(
    (*_COMMON_POLICY, "style-src 'self' 'unsafe-inline'", "img-src 'self' data:")
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Cached, but revalidated each time, so that after an upgrade no page mixes two releases.
    "Cache-Control": "no-cache",
}
_FILES = load_files()

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def get_page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The page."""
    return _answer(_FILES["index.html"], if_none_match)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def get_docs(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The documentation of the API as a page."""
    return _answer(_FILES["docs.html"], if_none_match, {"Content-Security-Policy": DOCS_POLICY})


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def get_file(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A script, style sheet or picture of the page."""
    file = _FILES.get(name)
    if file is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "The page has no such file.")
    return _answer(file, if_none_match)


def _answer(
    file: WebFile, if_none_match: str | None, more: Mapping[str, str] = MappingProxyType({})
) -> Response:
    headers = {**_HEADERS, **more, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if file.etag in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
