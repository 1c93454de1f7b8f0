"""A store that counts the bytes that go through it. No torch."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from strucprune_core.storage.store import ObjectInfo, Store, Tick, ignore_bytes


@dataclass(slots=True)
class Traffic:
    """Bytes moved so far, over all stores that share this. Safe to share between threads."""

    read_bytes: int = 0
    written_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, read: int = 0, written: int = 0) -> None:
        """Count bytes."""
        with self._lock:
            self.read_bytes += read
            self.written_bytes += written

    def take(self) -> tuple[int, int]:
        """(read, written) bytes since the last call."""
        with self._lock:
            moved = self.read_bytes, self.written_bytes
            self.read_bytes = self.written_bytes = 0
        return moved


@dataclass(frozen=True, slots=True)
class MeteredStore:
    """Another store, with its traffic counted. Reads through a file's own path do not count."""

    store: Store
    traffic: Traffic

    @property
    def uri(self) -> str:
        """The other store's."""
        return self.store.uri

    def stat(self, key: str) -> ObjectInfo | None:
        """See `Store`."""
        return self.store.stat(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """See `Store`."""
        data = self.store.read(key, start, length)
        self.traffic.add(read=len(data))
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        return self.store.list(prefix)

    def check_writable(self) -> None:
        """See `Store`."""
        self.store.check_writable()

    def remove_unfinished(self, keys: Collection[str]) -> None:
        """See `Store`."""
        self.store.remove_unfinished(keys)

    def put(self, key: str, data: bytes) -> None:
        """See `Store`."""
        self.store.put(key, data)
        self.traffic.add(written=len(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Store`."""
        written = self.store.put_if_absent(key, data)
        self.traffic.add(written=len(data) if written else 0)
        return written

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """See `Store`."""
        self.store.upload(key, path, tick)
        self.traffic.add(written=path.stat().st_size)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """See `Store`."""
        self.store.download(key, path, tick)
        self.traffic.add(read=path.stat().st_size)

    def delete(self, key: str) -> None:
        """See `Store`."""
        self.store.delete(key)

    def child(self, prefix: str) -> MeteredStore:
        """See `Store`."""
        return MeteredStore(self.store.child(prefix), self.traffic)

    def local_path(self, key: str) -> Path | None:
        """See `Store`."""
        return self.store.local_path(key)
