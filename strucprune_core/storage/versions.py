"""Versions of objects, which differ once the bytes do, without reading the whole of a large one."""

from __future__ import annotations

import hashlib

from strucprune_core.storage.store import ObjectInfo, ReadableStore

WHOLE_BYTES = 16 * 2**20
"""The version of a local file up to this size is its content, whatever its time of change."""
END_BYTES = 2**20
"""This much of a larger one is read at either end."""


def version_of(store: ReadableStore, info: ObjectInfo) -> str:
    """A text that changes when the object's bytes do.

    An object store provides it (the ETag). For a small local file it is the digest; for a large one
    the size, the time of change, and the digest of its first and last bytes.

    Args:
        store: Where the object lies.
        info: The object, from `list` or `stat`.
    """
    path = store.local_path(info.key)
    if path is None:
        return f"{info.version} {info.size_bytes}"
    sha = hashlib.sha256()
    if info.size_bytes <= WHOLE_BYTES:
        sha.update(store.read(info.key))
        return sha.hexdigest()
    sha.update(store.read(info.key, 0, END_BYTES))
    sha.update(store.read(info.key, info.size_bytes - END_BYTES, END_BYTES))
    return f"{info.version} {sha.hexdigest()}"
