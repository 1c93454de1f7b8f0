"""Bounded reads of what lies in a tenant's own bucket, where anything may have been put."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from strucprune_core.errors import AccessDenied, ObjectNotFound
from strucprune_core.report.document import MANIFEST, PublishedManifest
from strucprune_core.storage.keys import check_key
from strucprune_core.storage.store import Store

# A file takes some 150 bytes: room for 7,000, of which the largest models have some hundred.
MAX_MANIFEST_BYTES = 2**20
_PIECE_BYTES = 2**20


class NotAsWritten(Exception):
    """An object is gone, or is not what a job has written; the message says which and how."""


def read_small(store: Store, key: str, limit_bytes: int) -> bytes:
    """An object that is no larger than a limit.

    Raises:
        NotAsWritten: there is none, or it is larger.
        StorageError: the store refused or failed.
    """
    return b"".join(pieces(store, key, _size(store, key, limit_bytes)))


def read_manifest(store: Store) -> tuple[PublishedManifest, bytes]:
    """The list of a job's published files, and its bytes.

    Raises:
        NotAsWritten: it is gone, or was changed into something else.
        StorageError: the store refused or failed.
    """
    data = read_small(store, MANIFEST, MAX_MANIFEST_BYTES)
    try:
        manifest = PublishedManifest.model_validate_json(data)
        names = [check_key(entry.name) for entry in manifest.files]
    except (ValidationError, AccessDenied) as error:
        raise NotAsWritten(
            f"{MANIFEST} under the output prefix is not readable any more."
        ) from error
    if len({*names, MANIFEST}) <= len(names):
        raise NotAsWritten(f"{MANIFEST} under the output prefix names a file twice.")
    return manifest, data


def open_document(store: Store, key: str, limit_bytes: int) -> tuple[int, Iterator[bytes]]:
    """The size of an object and its bytes in pieces, of which the first is read already.

    Raises:
        NotAsWritten: there is none, or it is larger.
        StorageError: the store refused or failed.
    """
    size = _size(store, key, limit_bytes)
    found = pieces(store, key, size)
    first = next(found, b"")

    def all_pieces() -> Iterator[bytes]:
        yield first
        yield from found

    return size, all_pieces()


def pieces(store: Store, key: str, size_bytes: int) -> Iterator[bytes]:
    """The first bytes of an object, some at a time.

    Raises:
        NotAsWritten: it is gone.
        StorageError: the store refused or failed, or the object is shorter.
    """
    for start in range(0, size_bytes, _PIECE_BYTES):
        try:
            yield bytes(store.read(key, start, min(_PIECE_BYTES, size_bytes - start)))
        except ObjectNotFound as error:
            raise _gone(key) from error


def _size(store: Store, key: str, limit_bytes: int) -> int:
    info = store.stat(key)
    if info is None:
        raise _gone(key)
    if info.size_bytes > limit_bytes:
        raise NotAsWritten(f"{key} under the output prefix is not what the job wrote.")
    return info.size_bytes


def _gone(key: str) -> NotAsWritten:
    return NotAsWritten(f"{key} is no longer under the output prefix.")
