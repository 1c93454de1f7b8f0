"""Reads of limited size from a tenant's own bucket, where objects may have been replaced."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from strucprune_core.errors import AccessDenied, ObjectNotFound
from strucprune_core.report.document import MANIFEST, PublishedManifest
from strucprune_core.storage.keys import check_key
from strucprune_core.storage.store import Store

# An entry takes some 150 bytes, so this is enough for 7,000 files. Large models have some hundred.
MAX_MANIFEST_BYTES = 2**20
_PIECE_BYTES = 2**20


class NotAsWritten(Exception):
    """An object is gone, or is not what a job wrote. The message names it."""


def read_small(store: Store, key: str, limit_bytes: int) -> bytes:
    """The bytes of an object that must not be larger than a limit.

    Raises:
        NotAsWritten: it does not exist, or is larger.
        StorageError: the store refused or failed.
    """
    return b"".join(pieces(store, key, _size(store, key, limit_bytes)))


def read_manifest(store: Store) -> tuple[PublishedManifest, bytes]:
    """The list of a job's published files, and its bytes.

    Raises:
        NotAsWritten: it is gone, or is no such list any more.
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
    """The size of an object and its bytes in pieces. The first piece is read already.

    Raises:
        NotAsWritten: it does not exist, or is larger.
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
    """The first `size_bytes` of an object, in pieces.

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
