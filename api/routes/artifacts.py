"""The results of a succeeded job: its report and the files of the pruned checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.jobs.bucket_reads import NotAsWritten, open_document, read_manifest
from api.jobs.record import JobRecord
from api.jobs.state import JobState
from api.lookup import ReadableJob
from api.openapi import problems
from api.problems import ApiError
from api.services import Wired
from api.stores import Presigner
from api.views import ArtifactList, ArtifactView
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.report.document import (
    MANIFEST,
    REPORT_HTML,
    REPORT_JSON,
    FileEntry,
)
from strucprune_core.report.sizes import AnyReport
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.keys import MAX_KEY_BYTES
from strucprune_core.storage.store import Store

# A report has some 300 bytes per layer. A larger document was not written by a job.
MAX_DOCUMENT_BYTES = 16 * 2**20
# Making a URL takes a millisecond of processor time.
MAX_PAGE_SIZE = 100
URL_SECONDS = 900

# The page is in the tenant's bucket, where it may have been replaced. So it gets no scripts, no
# requests, and no access to this origin.
_HTML_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ),
}
# One URL has two forms: a cache must not return the wrong one.
_HEADERS = {"X-Content-Type-Options": "nosniff", "Vary": "Accept"}

router = APIRouter(prefix="/v1/pruning-jobs/{job_id}", tags=["results"])


@router.get(
    "/report",
    response_model=AnyReport,
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
    size: Annotated[
        str | None, Query(max_length=16, description="Of several sizes, the report of this one.")
    ] = None,
) -> Response:
    """The report of a succeeded job; of several sizes that on all of them, or on one."""
    store, folder = services.stores.open(_output_of(job)), _folder_of(job, size)
    by_accept = "html" if "text/html" in request.headers.get("Accept", "") else "json"
    if (format or by_accept) == "html":
        return _document(store, folder + REPORT_HTML, "text/html", {**_HEADERS, **_HTML_HEADERS})
    return _document(store, folder + REPORT_JSON, "application/json", _HEADERS)


def _folder_of(job: JobRecord, size: str | None) -> str:
    """Where a size's documents lie; those of the whole job lie beside the sizes' folders."""
    if size is None:
        return ""
    published = [each["folder"] for each in (job.summary or {}).get("sizes", [])]
    if size not in published:
        raise ApiError(HTTPStatus.NOT_FOUND, "artifact_gone", "The job has published no such size.")
    return f"{size}/"


def _document(store: Store, key: str, media_type: str, headers: Mapping[str, str]) -> Response:
    """A document in pieces, so that a slow client keeps only one of them in memory."""
    with _missing_as_404():
        size, found = open_document(store, key, MAX_DOCUMENT_BYTES)
    length = {"Content-Length": str(size)}
    return StreamingResponse(found, media_type=media_type, headers={**headers, **length})


@router.get("/artifacts", responses=problems(401, 403, 404, 409, 422, 503))
def get_artifacts(
    job: ReadableJob,
    services: Wired,
    presign: Annotated[bool, Query(description="Add short-lived download URLs.")] = False,
    name: Annotated[
        str | None, Query(max_length=MAX_KEY_BYTES, description="Only the file of this name.")
    ] = None,
    after: Annotated[
        str | None,
        Query(max_length=MAX_KEY_BYTES, description="`next_after` of the page before."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = MAX_PAGE_SIZE,
) -> ArtifactList:
    """Files of a succeeded job with their checksums. The last is their list, strucprune.json."""
    store = services.stores.open(_output_of(job))
    lender = store if presign and isinstance(store, Presigner) else None
    with _missing_as_404():
        manifest, data = read_manifest(store)
        itself = FileEntry(name=MANIFEST, bytes=len(data), sha256=sha256_of_bytes(data))
        # Last, as it was written: whoever has downloaded it has all files, and can verify them.
        page, next_after = _page([*manifest.files, itself], name, after, limit)
    files = [_artifact(store, lender, entry) for entry in page]
    return ArtifactList(
        data=files, expires_seconds=URL_SECONDS if lender else None, next_after=next_after
    )


def _page(
    entries: Sequence[FileEntry], name: str | None, after: str | None, limit: int
) -> tuple[Sequence[FileEntry], str | None]:
    """The requested files, and the name of the last one if there are more."""
    places = {entry.name: place for place, entry in enumerate(entries)}
    wanted = after if name is None else name
    if wanted is not None and wanted not in places:
        raise NotAsWritten(f"{shown(wanted)} is not a file of the job.")
    if name is not None:
        return [entries[places[name]]], None
    start = 0 if after is None else places[after] + 1
    page = entries[start : start + limit]
    return page, page[-1].name if start + limit < len(entries) else None


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


@contextmanager
def _missing_as_404() -> Iterator[None]:
    """Answer 404 if a file is gone or is not what the job wrote."""
    try:
        yield
    except NotAsWritten as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "artifact_gone", str(error)) from error
