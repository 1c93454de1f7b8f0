"""What a finished job has produced: its report and the files of the pruned checkpoint."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from api.jobs.record import JobRecord
from api.jobs.state import JobState
from api.lookup import ReadableJob
from api.openapi import problems
from api.problems import ApiError
from api.services import Wired
from api.stores import Presigner
from api.views import ArtifactList, ArtifactView
from strucprune_core.errors import AccessDenied, ObjectNotFound
from strucprune_core.report.document import (
    MANIFEST,
    REPORT_HTML,
    REPORT_JSON,
    FileEntry,
    PublishedManifest,
    Report,
)
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.keys import check_key
from strucprune_core.storage.store import Store

# A report grows by some 300 bytes per layer; what is larger was not written by us.
MAX_DOCUMENT_BYTES = 16 * 2**20
URL_SECONDS = 900

# The page lies in the user's bucket, so anything may have been put in its place: no scripts, no
# requests, no access to this origin.
_HTML_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ),
}
# One address, two forms: a cache must not hand out the wrong one.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Vary": "Accept"}

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["results"])


@router.get(
    "/report",
    response_model=Report,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        **problems(401, 403, 404, 409, 422, 503),
    },
)
def get_report(
    request: Request,
    job: ReadableJob,
    services: Wired,
    format: Annotated[  # noqa: A002 - the name is the query parameter's
        Literal["json", "html"] | None, Query(description="Default: by Accept, else json.")
    ] = None,
) -> Response:
    """The report of a succeeded job."""
    store = services.stores.open(_output_of(job))
    by_accept = "html" if "text/html" in request.headers.get("Accept", "") else "json"
    if (format or by_accept) == "html":
        page = _read(store, REPORT_HTML)
        return Response(page, media_type="text/html", headers={**_HEADERS, **_HTML_HEADERS})
    return Response(_read(store, REPORT_JSON), media_type="application/json", headers=_HEADERS)


@router.get("/artifacts", responses=problems(401, 403, 404, 409, 422, 503))
def get_artifacts(
    job: ReadableJob,
    services: Wired,
    presign: Annotated[bool, Query(description="Add short-lived download URLs.")] = False,
) -> ArtifactList:
    """The files of a succeeded job, with their checksums; last their list, strucprune.json."""
    store = services.stores.open(_output_of(job))
    lender = store if presign and isinstance(store, Presigner) else None
    manifest = _read(store, MANIFEST)
    itself = FileEntry(name=MANIFEST, bytes=len(manifest), sha256=sha256_of_bytes(manifest))
    # Last, as it was written: who has it has everything, and can verify it.
    entries = [*_parsed(manifest).files, itself]
    files = [_artifact(store, lender, entry) for entry in entries]
    return ArtifactList(data=files, expires_seconds=URL_SECONDS if lender else None)


def _artifact(store: Store, lender: Presigner | None, entry: FileEntry) -> ArtifactView:
    return ArtifactView(
        name=entry.name,
        bytes=entry.bytes,
        sha256=entry.sha256,
        uri=f"{store.uri}/{entry.name}",
        url=lender.presign(entry.name, URL_SECONDS) if lender else None,
    )


def _output_of(job: JobRecord) -> str:
    if job.state != JobState.SUCCEEDED:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "job_not_succeeded",
            f"The job is {job.state.value}; only a succeeded job has results.",
        )
    uri: str = job.spec["output"]["uri_prefix"]
    return uri


def _parsed(data: bytes) -> PublishedManifest:
    try:
        manifest = PublishedManifest.model_validate_json(data)
        for entry in manifest.files:
            check_key(entry.name)  # the user could have edited it to point elsewhere
        return manifest
    except (ValidationError, AccessDenied) as error:
        raise _gone(f"{MANIFEST} under the output prefix is not readable any more.") from error


def _read(store: Store, key: str) -> bytes:
    info = store.stat(key)
    if info is None:
        raise _gone(f"{key} is no longer under the output prefix.")
    if info.size_bytes > MAX_DOCUMENT_BYTES:
        raise _gone(f"{key} under the output prefix is not what the job wrote.")
    try:
        return bytes(store.read(key))
    except ObjectNotFound as error:
        raise _gone(f"{key} is no longer under the output prefix.") from error


def _gone(detail: str) -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "artifact_gone", detail)
