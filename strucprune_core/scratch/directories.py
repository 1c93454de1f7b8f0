"""Directories for temporary files, and the error when they cannot be written. No torch.

A directory is removed at the end or, after a crash, by the next run or worker. The process that
made it holds a lock on it (flock). The kernel drops the lock when the process ends, however it
ends, so a directory without a lock is left over and may be removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from strucprune_core.errors import ScratchUnavailable

# Every directory with this prefix that is not locked is removed: nothing else may bear it.
PREFIX = "strucprune-scratch-"


@contextmanager
def scratch_errors(what: str) -> Iterator[None]:
    """Turn the system's errors about temporary files into one that says what to do.

    The message names no path: users of a service read it.

    Args:
        what: The file, as in "a matrix of 80 bytes".

    Raises:
        ScratchUnavailable: the system raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # A library's own, not the system's.
            raise
        raise ScratchUnavailable(
            f"{what} cannot be stored as a temporary file: {os.strerror(error.errno).lower()}",
            field="scratch",
        ) from error


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new directory, removed at the end.

    Args:
        parent: Where; the system's directory for temporary files if None.

    Raises:
        ScratchUnavailable: it cannot be made.
    """
    with scratch_errors("a directory"):
        path, lock = _make(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path | None = None, on_left: Callable[[Path], None] = lambda path: None) -> int:
    """Remove directories that crashed processes left; their number.

    Args:
        parent: Where; the system's directory for temporary files if None.
        on_left: Called with each, before it is removed.

    Raises:
        ScratchUnavailable: `parent` cannot be listed.
    """
    with scratch_errors("a directory"):
        names = [*Path(parent or tempfile.gettempdir()).iterdir()]
    return sum(_remove(path, on_left) for path in names if path.name.startswith(PREFIX))


def _make(parent: Path | None) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock(path, wait=True)
        if lock is not None and path.is_dir():
            return path, lock
        # A sweep ran between making and locking it, and removed it as left over.
        if lock is not None:
            os.close(lock)


def _remove(path: Path, on_left: Callable[[Path], None]) -> bool:
    try:
        lock = _lock(path, wait=False)
    except OSError:
        # Not a directory, or another user's.
        return False
    if lock is None:
        return False
    on_left(path)
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
    return True


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None if the directory is gone, or locked by another."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
