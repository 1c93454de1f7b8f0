"""The store protocols: the few methods that pruning needs of an object store or a directory.

Each adds to the one before: `Readable` reads one object, `ReadableStore` finds and copies objects,
`InspectableStore` says whether it could be written, `Store` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object.

    Attributes:
        key: Relative to the store's root.
        size_bytes: Its size.
        version: Changes when the object is written again (ETag, time of change).
    """

    key: str
    size_bytes: int
    version: str = field(default="", compare=False)


Tick = Callable[[int], None]
"""Called during a transfer, in the caller's thread, with the bytes done so far. What it raises
abandons the transfer, which leaves nothing behind."""


def ignore_bytes(done: int) -> None:
    """A tick for callers that do not follow the transfer."""


class Readable(Protocol):
    """Objects that can be read by key."""

    @property
    def uri(self) -> str:
        """The root, as a user would write it."""

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and version of an object, or None if it does not exist."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such object.
            StorageError: the object is shorter than `start + length`.
        """


class ReadableStore(Readable, Protocol):
    """Objects under one root, for callers that only read."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in the service's order."""

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write an object to a local file, in bounded memory."""

    def local_path(self, key: str) -> Path | None:
        """The object's own file if it lies on this machine's file system, else None."""


class InspectableStore(ReadableStore, Protocol):
    """What judging a job needs of the stores that the job names."""

    def check_writable(self) -> None:
        """Raise what a write below the root would raise. Readers see nothing of it."""


class Store(InspectableStore, Protocol):
    """Objects under one root (a directory, or a bucket and key prefix), to read and write.

    Keys are relative, '/'-separated, and can never leave the root. Every method raises
    `StorageUnavailable`, `AccessDenied` or `ObjectNotFound` (see `errors`), never a
    library's own exception.
    """

    def remove_unfinished(self, keys: Collection[str]) -> None:
        """Remove what killed writers of these objects left. Only where no writer is at work.

        Readers never saw any of it; it only takes space.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new, never a part."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists. True if this call wrote it; one racer wins."""

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write a local file as an object, atomically, in bounded memory."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if it does not exist."""

    def child(self, prefix: str) -> Store:
        """The store rooted at `prefix` under this one."""
