"""A store with one more small file, which is only in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from strucprune_core.storage.store import ObjectInfo, ReadableStore, Tick, ignore_bytes


class WithAddedFile:
    """A `ReadableStore` in which a file can be read that the store behind does not have.

    `list` does not show it: that is what lies in the store.

    Args:
        store: The store behind.
        key: The file's name.
        data: Its content.
    """

    def __init__(self, store: ReadableStore, key: str, data: bytes) -> None:
        self._store, self._key, self._data = store, key, data

    @property
    def uri(self) -> str:
        """The root of the store behind."""
        return self._store.uri

    def stat(self, key: str) -> ObjectInfo | None:
        """See `Readable.stat`."""
        return ObjectInfo(key, len(self._data)) if key == self._key else self._store.stat(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """See `Readable.read`."""
        if key != self._key:
            return self._store.read(key, start, length)
        stop = len(self._data) if length is None else start + length
        return bytearray(self._data[start:stop])

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ReadableStore.list`."""
        return self._store.list(prefix)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """See `ReadableStore.download`."""
        if key == self._key:
            path.write_bytes(self._data)
        else:
            self._store.download(key, path, tick)

    def local_path(self, key: str) -> Path | None:
        """See `ReadableStore.local_path`."""
        return None if key == self._key else self._store.local_path(key)
