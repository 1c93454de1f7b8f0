"""A store on a local directory. Writes are atomic and durable; reads never leave the root."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from strucprune_core.errors import AccessDenied, ObjectNotFound, StorageError, StorageUnavailable
from strucprune_core.storage.hub_cache import places_of_blobs
from strucprune_core.storage.keys import check_key, check_prefix
from strucprune_core.storage.store import ObjectInfo, Tick, ignore_bytes

# Unfinished writes carry this prefix: never listed, never addressable by a key.
_TEMPORARY = ".strucprune-tmp-"
_COPY_BYTES = 8 * 2**20
# An open file without a name is linked from here.
_DESCRIPTORS = Path("/proc/self/fd")
_HAS_PROC = _DESCRIPTORS.is_dir()
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHECK_NAME = "Check the path and the name."


@dataclass(frozen=True, slots=True, init=False)
class LocalStore:
    """Objects as files below a directory, which need not exist before the first write.

    Symbolic links are followed only to places below the root; in a snapshot of the hub's cache,
    also to where that cache keeps the files.
    """

    root: Path

    def __init__(self, root: Path) -> None:
        # The user chose the root, so links on the way to it are trusted; links below it are not.
        object.__setattr__(self, "root", Path(root).resolve())

    @property
    def uri(self) -> str:
        """The directory, absolute and with links resolved."""
        return str(self.root)

    def stat(self, key: str) -> ObjectInfo | None:
        """Size of an object, or None if it does not exist."""
        with _translated(key):
            status = _file_status(self._path(key))
        return None if status is None else ObjectInfo(key, status.st_size, _version(status))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such object.
            StorageError: the object is shorter than `start + length`.
        """
        with _translated(key), self._open(key) as file:
            size = os.fstat(file.fileno()).st_size
            wanted = max(size - start, 0) if length is None else length
            # Compared before allocating: a length may come from hostile data.
            if start + wanted > size:
                raise _too_short(key, start + wanted, size)
            data = bytearray(wanted)
            file.seek(start)
            got = file.readinto(data)
        if got != wanted:
            raise _too_short(key, start + wanted, start + got)
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order."""
        check_prefix(prefix)
        folder, _, stem = prefix.rpartition("/")
        with _translated(prefix):
            base = self._path(folder) if folder else self.root
            yield from _walk(base, f"{folder}/" if folder else "", stem)

    def check_writable(self) -> None:
        """Raise what a write below the root would raise, leaving no trace.

        Raises:
            AccessDenied: this user cannot write files there.
            StorageError: a file stands where a directory is needed.
        """
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise _in_the_way(folder)
        probe = _temporary(folder)
        try:
            probe.touch(exist_ok=False)
        except OSError as error:
            if error.errno in _FULL:
                raise _full(self.uri, error) from error
            raise AccessDenied(
                f"nothing can be written under {self.root}: {_reason(error)}",
                remedy="Choose a directory that this user may write to.",
            ) from error
        probe.unlink(missing_ok=True)

    def remove_unfinished(self, keys: Collection[str]) -> None:
        """Remove what killed writers of these objects left. Only where no writer is at work."""
        for folder in {self._path(key).parent for key in keys}:
            with _translated(str(folder)):
                for path in folder.glob(f"{_TEMPORARY}*"):
                    path.unlink(missing_ok=True)

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new, never a part."""
        self._write(key, lambda file: _write_all(file, data), _replace)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists. True if this call wrote it; one racer wins."""
        return self._write(key, lambda file: _write_all(file, data), _link)

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write a local file as an object, atomically, in bounded memory."""
        with _translated(str(path)), path.open("rb") as source:
            self._write(key, lambda file: _copy(source, file, tick), _replace)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write an object to a local file, in bounded memory."""
        with _translated(key), self._open(key) as source:
            _write_file(path, lambda file: _copy(source, file, tick), _replace)

    def delete(self, key: str) -> None:
        """Remove an object; no error if it does not exist."""
        with _translated(key):
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
                _sync_directory(path.parent)
            except (FileNotFoundError, NotADirectoryError):
                return

    def child(self, prefix: str) -> LocalStore:
        """The store rooted at `prefix` under this one."""
        return LocalStore(self._path(prefix))

    def local_path(self, key: str) -> Path | None:
        """The object's own file, or None if there is no such object."""
        with _translated(key):
            path = self._path(key)
            return None if _file_size(path) is None else path

    def _write(
        self, key: str, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], bool]
    ) -> bool:
        with _translated(key):
            path = self._path(key)
            if path.is_dir():
                raise StorageError(
                    f"'{key}' is a directory, so no object can have that name",
                    remedy="Choose another place, or move that directory.",
                )
            _make_directories(path.parent)
            return _write_file(path, fill, publish)

    def _open(self, key: str) -> BufferedReader:
        path = self._path(key)
        # A FIFO or device would block or never end; only regular files are objects.
        if _file_size(path) is None:
            raise ObjectNotFound(f"'{key}' does not exist under {self.root}", remedy=_CHECK_NAME)
        return path.open("rb")

    def _path(self, key: str) -> Path:
        check_key(key)
        if any(part.startswith(_TEMPORARY) for part in key.split("/")):
            raise AccessDenied(
                f"'{key}' is the name of an unfinished write", remedy="Rename the file."
            )
        path = self.root / key
        # `resolve` follows links in the parents too, also of a path that does not exist yet.
        target = path.resolve()
        if not target.is_relative_to(self.root) and not any(
            target.is_relative_to(place) for place in places_of_blobs(self.root)
        ):
            raise AccessDenied(
                f"'{key}' is a link that leads out of {self.root}",
                remedy="Copy the files themselves (cp -rL) instead of links to them.",
            )
        return path


def _walk(folder: Path, prefix: str, stem: str) -> Iterator[ObjectInfo]:
    """Objects below `folder` whose name there starts with `stem`.

    Linked directories are not entered, so that a cycle cannot trap the walk.
    """
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if entry.name.startswith(stem)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in sorted((_sort_name(entry), entry) for entry in entries):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), prefix + name, "")
        elif not name.startswith(_TEMPORARY):
            status = _file_status(Path(entry.path))
            if status is not None:
                yield ObjectInfo(prefix + name, status.st_size, _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _sort_name(entry: os.DirEntry[str]) -> str:
    """A directory sorts as its keys do: "a.txt" < "a/b"."""
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _file_size(path: Path) -> int | None:
    status = _file_status(path)
    return None if status is None else status.st_size


def _file_status(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat_module.S_ISREG(status.st_mode) else None


def _write_file(
    path: Path, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], bool]
) -> bool:
    """Fill a file beside `path`, make it durable, and publish it under its name."""
    with _unfinished(path.parent) as (file, source):
        fill(file)
        file.flush()
        os.fsync(file.fileno())
        published = publish(source, path)
    _sync_directory(path.parent)
    return published


@contextmanager
def _unfinished(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file in a folder, and the path to link it from.

    It has no name where the file system supports that, so that a killed process leaves nothing.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666) if _HAS_PROC else None
    except OSError:  # Not supported; another error will occur again below.
        descriptor = None
    if descriptor is not None:
        with os.fdopen(descriptor, "wb") as file:
            yield file, _DESCRIPTORS / str(descriptor)
        return
    temporary = _temporary(folder)
    try:
        with temporary.open("xb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(folder: Path) -> Path:
    return folder / f"{_TEMPORARY}{uuid4().hex}"


def _copy(source: BinaryIO, target: BinaryIO, tick: Tick) -> None:
    done = 0
    while block := source.read(_COPY_BYTES):
        target.write(block)
        done += len(block)
        tick(done)


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _replace(source: Path, path: Path) -> bool:
    if source.parent != _DESCRIPTORS:
        source.replace(path)
    elif not _link(source, path):
        # Only a rename replaces another file, and only a file with a name can be renamed.
        temporary = _temporary(path.parent)
        _link(source, temporary)
        try:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def _link(source: Path, path: Path) -> bool:
    """Give a complete file its name unless that is taken: the kernel lets exactly one racer win."""
    try:
        if source.parent == _DESCRIPTORS:
            # Only with `src_dir_fd`, which an absolute path ignores, does it follow /proc's link.
            os.link(source, path, src_dir_fd=0)
        else:
            os.link(source, path)
    except FileExistsError:
        return False
    return True


def _make_directories(folder: Path) -> None:
    """Create missing directories, each made durable in its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:
            raise _in_the_way(path) from None
        _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    """Make renames in a directory survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _too_short(key: str, wanted: int, size: int) -> StorageError:
    return StorageError(
        f"'{key}' ends at byte {size}, but bytes up to {wanted} were asked for",
        remedy="It is incomplete, or was written again meanwhile: copy it again.",
    )


def _in_the_way(path: Path) -> StorageError:
    return StorageError(
        f"{path} is a file, not a directory", remedy="Choose another place, or move that file."
    )


def _full(name: str, error: OSError) -> StorageUnavailable:
    return StorageUnavailable(
        f"'{name}': {_reason(error)}", remedy="Free space on that disk and try again."
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn an `OSError` into the typed error of the store protocol."""
    try:
        yield
    except OSError as error:
        reason = _reason(error)
        if error.errno in _ABSENT:
            raise ObjectNotFound(f"'{name}': {reason}", remedy=_CHECK_NAME) from error
        if error.errno in _REFUSED:
            raise AccessDenied(
                f"'{name}': {reason}",
                remedy="Give this user the permission, or choose another place.",
            ) from error
        if error.errno in _FULL:
            raise _full(name, error) from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            raise StorageError(f"'{name}': {reason}", remedy=_CHECK_NAME) from error
        raise StorageUnavailable(f"'{name}': {reason}") from error
