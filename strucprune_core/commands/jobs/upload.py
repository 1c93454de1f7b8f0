"""Files of this machine that a job names go to storage before it is submitted. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strucprune_core.commands.byte_display import byte_display
from strucprune_core.commands.console import stderr
from strucprune_core.commands.job_options import Path_
from strucprune_core.errors import naming_field
from strucprune_core.storage.uri import parse_uri

if TYPE_CHECKING:
    from strucprune_core.client.models import Validation
    from strucprune_core.client.synchronous import StrucPruneClient

UPLOADS = "uploads"
"""The folder of uploads beside a job's output, where `--upload-to` names no other place."""
# Where a job may name files, and the folder into which these go.
_PLACES: dict[Path_, str] = {
    ("model", "uri"): "models",
    ("model", "adapter_uri"): "adapters",
    ("calibration", "uri"): "texts",
    ("evaluation", "uri"): "texts",
    ("evaluation", "task_files"): "tasks",
}


def ready_job(
    client: StrucPruneClient, body: dict[str, Any], upload_to: str | None
) -> dict[str, Any]:
    """The job as the service can run it: files of this machine are uploaded if it cannot read them.

    Args:
        client: Of the service, which is asked about the job if it names local files.
        body: The job as REST takes it.
        upload_to: Where files go, whatever the service can read; None for a folder beside the
            output, if that is in S3.

    Raises:
        InvalidCheckpoint: the model cannot be pruned.
        StorageError: the store refused or failed.
        ClientError: the service refused or failed.
    """
    root = upload_to or _beside_output(body)
    places = dict(_places_here(body))
    if not places or root is None:
        return body
    if upload_to is None and not _is_refused(client.validate(body), places):
        return body
    return _with_uploads(body, places, root)


def note_on_uploads(body: dict[str, Any], verdict: Validation) -> None:
    """Say that a check uploads nothing, if it fails because files are on this machine."""
    if _is_refused(verdict, dict(_places_here(body))):
        stderr.print(
            "The job names files of this machine. Without --validate they are uploaded first; "
            "strucprune estimate checks the job here.",
            soft_wrap=True,
        )


def _is_refused(verdict: Validation, places: Mapping[Path_, Path]) -> bool:
    """Whether one of these places is what is wrong with a job."""
    pointers = {"/" + "/".join(path) for path in places}
    return any(issue.pointer in pointers for issue in verdict.issues)


def _with_uploads(body: dict[str, Any], places: Mapping[Path_, Path], root: str) -> dict[str, Any]:
    """The job with URIs of storage in place of files of this machine."""
    changed = {name: dict(each) if isinstance(each, dict) else each for name, each in body.items()}
    for path, place in places.items():
        with naming_field(".".join(path)):
            if path == ("model", "uri"):
                _check_model(place)
            changed[path[0]][path[1]] = _uploaded(place, f"{root.rstrip('/')}/{_PLACES[path]}")
    return changed


def _places_here(body: dict[str, Any]) -> Iterator[tuple[Path_, Path]]:
    """Fields that name a file or directory of this machine."""
    for path in _PLACES:
        place = _local(body, path)
        if place is not None:
            yield path, place


def _local(body: dict[str, Any], path: Path_) -> Path | None:
    """The file or directory of this machine that a field names, if it does."""
    section = body.get(path[0])
    uri = section.get(path[1]) if isinstance(section, dict) else None
    if not isinstance(uri, str):
        return None
    try:
        location = parse_uri(uri)
        place = location.path if location.scheme == "file" else None
    except ValueError:
        return None  # The service says what is wrong with it.
    return place if place is not None and place.exists() else None


def _beside_output(body: dict[str, Any]) -> str | None:
    output = body.get("output")
    uri = output.get("uri_prefix") if isinstance(output, dict) else None
    if not isinstance(uri, str) or not uri.startswith("s3://"):
        return None
    parent, _, _ = uri.rstrip("/").removeprefix("s3://").rpartition("/")
    return f"s3://{parent}/{UPLOADS}" if parent else None


def _check_model(place: Path) -> None:
    """Refuse a model that cannot be pruned before it is uploaded. Reads no weights."""
    from strucprune_core.plan.inspection import read_model
    from strucprune_core.storage.open import open_store

    read_model(str(place), open_store)


def _uploaded(place: Path, folder: str) -> str:
    """Where a file or the files of a directory now lie in storage."""
    from strucprune_core.storage import local_upload
    from strucprune_core.storage.open import open_store

    paths = local_upload.paths_of(place)
    total = sum(path.stat().st_size for path in paths)
    with byte_display("reading", total) as display:
        files = local_upload.measured(paths, display)
    name = local_upload.content_name(place.resolve().name, files)
    store = open_store(f"{folder}/{name}")
    left = list(local_upload.missing(files, store))
    with byte_display("uploading", sum(file.size_bytes for file in left)) as display:
        for file in left:
            local_upload.send(file, store, display)
    told = "is already at" if not left else "uploaded to"
    stderr.print(f"{place} {told} {store.uri}", markup=False, highlight=False, soft_wrap=True)
    return f"{store.uri}/{place.name}" if place.is_file() else store.uri
