"""A store on a repository of a Hugging Face hub, at one commit. Read only. No torch.

`publish` writes to a hub: a job's output is a directory or a prefix of S3.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from strucprune_core.errors import (
    AccessDenied,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from strucprune_core.storage.hub_requests import LONGEST_WAIT_SECONDS, HubClient
from strucprune_core.storage.keys import check_key, check_prefix
from strucprune_core.storage.store import ObjectInfo, Tick, ignore_bytes
from strucprune_core.storage.uri import COMMIT, Location

_PIECE_BYTES = 16 * 2**20


class Repository:
    """A repository at the commit that its revision had when it was first asked for.

    Safe to share between threads.

    Args:
        client: Asks the hub.
        revision: Branch, tag or commit; "" is the main branch.
    """

    def __init__(self, client: HubClient, revision: str) -> None:
        self.client = client
        self.revision = revision
        self._commit = revision if COMMIT.fullmatch(revision) else ""
        self._lock = threading.Lock()

    @property
    def commit(self) -> str:
        """The commit, 40 hexadecimal digits.

        Raises:
            ObjectNotFound: there is no such repository or revision, or it is private.
            AccessDenied: the token gives no access to it.
            StorageError: the hub does not answer as one.
        """
        with self._lock:
            if not self._commit:
                commit = self.client.commit(self.revision)
                if not COMMIT.fullmatch(commit):
                    raise StorageError(f"hf://{self.client.repository}: {commit!r} is no commit")
                self._commit = commit
            return self._commit


@dataclass(frozen=True, slots=True)
class HubStore:
    """Files of a repository below a folder.

    Attributes:
        repository: The repository.
        location: Its place; `key` is the folder.
    """

    repository: Repository = field(repr=False)
    location: Location

    @property
    def uri(self) -> str:
        """`hf://org/name@revision/folder`."""
        return str(self.location)

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and digest of a file, or None if it does not exist."""
        path = self._path(key)
        facts = self.repository.client.file_facts(self.repository.commit, path)
        return None if facts is None else ObjectInfo(key, *facts)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such file.
            StorageError: the file is shorter than `start + length`.
        """
        if not length:  # HTTP has no empty range, and the end is known of the size alone.
            info = self.stat(key)
            if info is None:
                raise ObjectNotFound(f"{self.uri}/{key} does not exist")
            if info.size_bytes < start:
                raise StorageError(f"{self.uri}/{key} is shorter than {start} bytes")
            length = info.size_bytes - start if length is None else 0
            if length == 0:
                return bytearray()
        path = self._path(key)
        return self.repository.client.read(self.repository.commit, path, start, length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every file whose key starts with `prefix`, in the hub's order."""
        folder = check_prefix(prefix).rpartition("/")[0]
        root = f"{self.location.key}/" if self.location.key else ""
        commit = self.repository.commit
        for page in self.repository.client.pages(commit, f"{root}{folder}".rstrip("/")):
            for entry in page:
                found = _entry(entry, self.uri)
                if found is not None and found.key.startswith(root + prefix):
                    key = found.key.removeprefix(root)
                    yield ObjectInfo(key, found.size_bytes, found.version)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write a file to a local one, a piece at a time."""
        info = self.stat(key)
        if info is None:
            raise ObjectNotFound(f"{self.uri}/{key} does not exist")
        with _local_errors(self.uri), path.open("wb") as file:
            for start in range(0, info.size_bytes, _PIECE_BYTES):
                file.write(self.read(key, start, min(_PIECE_BYTES, info.size_bytes - start)))
                tick(file.tell())

    def local_path(self, key: str) -> Path | None:
        """None: the files lie on another machine."""
        check_key(key)
        return None

    def child(self, prefix: str) -> HubStore:
        """The store rooted at `prefix` under this one."""
        at = self.location
        key = self._path(prefix.rstrip("/"))
        return HubStore(self.repository, Location(at.scheme, at.bucket, key, at.revision))

    def check_writable(self) -> None:
        """Refuse: a hub is only read here."""
        self._refuse()

    def remove_unfinished(self, keys: Collection[str]) -> None:
        """Refuse: a hub is only read here."""
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """Refuse: a hub is only read here."""
        self._refuse()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Refuse: a hub is only read here."""
        self._refuse()

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Refuse: a hub is only read here."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Refuse: a hub is only read here."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AccessDenied(
            f"{self.uri}: a hub is only read here",
            remedy="Write to a directory or s3://bucket/prefix; `strucprune publish` then copies a "
            "finished result to a hub.",
        )

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self.location.key}/{key}" if self.location.key else key


def open_hub(location: Location, *, longest_wait_seconds: float | None = None) -> HubStore:
    """A store on a place of a hub. Makes no request.

    Args:
        location: The place.
        longest_wait_seconds: See `HubClient`; None: its own.
    """
    longest = LONGEST_WAIT_SECONDS if longest_wait_seconds is None else longest_wait_seconds
    client = HubClient(location.bucket, longest)
    return HubStore(Repository(client, location.revision), location)


def _entry(entry: Any, uri: str) -> ObjectInfo | None:
    """A file of a listing, with its whole path; None for a folder."""
    try:
        if entry["type"] != "file":
            return None
        path, size, digest = entry["path"], entry["size"], entry["oid"]
        if entry.get("lfs"):  # `oid` is then that of the pointer to it.
            digest = entry["lfs"]["oid"]
        if not (isinstance(path, str) and isinstance(digest, str) and int(size) >= 0):
            raise TypeError(path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"{uri}: the listing is not that of a hub", remedy="Check HF_ENDPOINT."
        ) from error
    return ObjectInfo(check_key(path), int(size), digest)


@contextmanager
def _local_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"{name}: the local file of the transfer failed: {error}",
            remedy="Check that disk and its free space, then try again.",
        ) from error
