"""What a finished job has published: its list of files, and whether they are those. No torch."""

from __future__ import annotations

import hashlib

from pydantic import ValidationError

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.report.document import MANIFEST, FileEntry, PublishedManifest
from strucprune_core.storage.store import Readable

_READ_BYTES = 16 << 20
_AGAIN = "Download it again, or prune again."


def check_digests(store: Readable) -> int:
    """Compare every file with the manifest. Returns how many there are.

    Raises:
        InvalidCheckpoint: there is no manifest, or a file is missing or another one.
        StorageError: the store refused or failed.
    """
    files = published_files(store)
    for entry in files:
        if _digest(store, entry) != entry.sha256:
            raise altered(entry)
    return len(files)


def published_files(store: Readable) -> list[FileEntry]:
    """The files that the manifest lists, each of which is there with its size.

    Raises:
        InvalidCheckpoint: there is no manifest, or a file is missing or of another size.
        StorageError: the store refused or failed.
    """
    if store.stat(MANIFEST) is None:
        raise InvalidCheckpoint(
            f"there is no {MANIFEST} under {store.uri}",
            remedy="Name the output of a finished pruning job.",
        )
    files = _manifest(store).files
    for entry in files:
        info = store.stat(entry.name)
        if info is None:
            raise InvalidCheckpoint(f"{entry.name} is missing", remedy=_AGAIN)
        if info.size_bytes != entry.bytes:
            raise altered(entry)
    return files


def altered(entry: FileEntry) -> InvalidCheckpoint:
    """The error for a file that is not the one that was published."""
    return InvalidCheckpoint(f"{entry.name} is not the file that was written", remedy=_AGAIN)


def _manifest(store: Readable) -> PublishedManifest:
    try:
        return PublishedManifest.model_validate_json(bytes(store.read(MANIFEST)))
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InvalidCheckpoint(
            f"{MANIFEST} is damaged: {reason}",
            remedy="Download the checkpoint again, or prune again.",
        ) from error


def _digest(store: Readable, entry: FileEntry) -> str:
    sha = hashlib.sha256()
    for start in range(0, entry.bytes, _READ_BYTES):
        sha.update(store.read(entry.name, start, min(_READ_BYTES, entry.bytes - start)))
    return sha.hexdigest()
