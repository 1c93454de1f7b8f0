"""Which bytes an object held when it was looked at, told without reading all of a large one."""

from __future__ import annotations

import hashlib

from strucprune_core.storage.store import ObjectInfo, ReadableStore

WHOLE_BYTES = 16 * 2**20
"""A local file up to this size is told by its content, however old it says it is."""
END_BYTES = 2**20
"""Of a larger one so much is read at either end."""


def version_of(store: ReadableStore, info: ObjectInfo) -> str:
    """A text that is another one once the object holds other bytes.

    An object store tells it (the ETag). Of a local file it is the digest of a small one; of a large
    one the size, the time of change, and the digest of its first and last bytes.

    Args:
        store: Where the object lies.
        info: What `list` or `stat` told of it.
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
