"""A store for reading files that lie in different places: some on disk, some in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from strucprune_core.errors import ObjectNotFound, StorageError
from strucprune_core.storage.store import ObjectInfo, Tick, ignore_bytes

_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class OverlayStore:
    """A `ReadableStore` of named contents and files.

    Attributes:
        contents: Small objects by key.
        paths: Large objects by key.
    """

    contents: Mapping[str, bytes]
    paths: Mapping[str, Path]

    @property
    def uri(self) -> str:
        """A name for messages; it cannot be opened."""
        return "(assembled checkpoint)"

    def stat(self, key: str) -> ObjectInfo | None:
        """Size of an object, or None if it does not exist."""
        if key in self.contents:
            return ObjectInfo(key, len(self.contents[key]))
        path = self.paths.get(key)
        if path is None or not path.exists():
            return None
        return ObjectInfo(key, path.stat().st_size)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such object.
            StorageError: the object is shorter.
        """
        info = self.stat(key)
        if info is None:
            raise ObjectNotFound(f"{self.uri} has no {key}")
        size = info.size_bytes - start if length is None else length
        if size < 0 or start + size > info.size_bytes:
            raise StorageError(f"{key} ends before byte {max(start, start + size)}")
        if key in self.contents:
            return bytearray(self.contents[key][start : start + size])
        data = bytearray(size)
        with self.paths[key].open("rb", buffering=0) as file:
            file.seek(start)
            view = memoryview(data)
            while len(view):
                view = view[file.readinto(view) or len(view) :]
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order."""
        for key in sorted({*self.contents, *self.paths}):
            info = self.stat(key)
            if info is not None and key.startswith(prefix):
                yield info

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write an object to a local file, a piece at a time.

        Raises:
            ObjectNotFound: no such object.
        """
        info = self.stat(key)
        if info is None:
            raise ObjectNotFound(f"{self.uri} has no {key}")
        with path.open("wb") as file:
            for start in range(0, info.size_bytes, _PIECE_BYTES):
                file.write(self.read(key, start, min(_PIECE_BYTES, info.size_bytes - start)))
                tick(file.tell())

    def local_path(self, key: str) -> Path | None:
        """The object's own file, if it has one."""
        return self.paths.get(key)
