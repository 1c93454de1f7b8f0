"""Scratch directories of solves: removed with their solve, or, after a crash, by the next worker.

Each is locked (flock) by the supervisor that made it. The kernel drops the lock when that process
ends, however it ends, so a directory that nobody locks is left over and may go.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.failures import scratch_unavailable

# Whatever bears this name and is not locked gets deleted: nothing else may be called so.
PREFIX = "strucprune-scratch-"


@contextmanager
def directory(parent: Path | None) -> Iterator[Path]:
    """A new directory for one solve.

    Args:
        parent: Where; the system's directory for temporary files if None.

    Raises:
        ScratchUnavailable: it cannot be made.
    """
    try:
        path, lock = _make(parent)
    except OSError as error:
        raise scratch_unavailable(error) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path | None) -> int:
    """Remove directories that crashed supervisors left; their number.

    Raises:
        ScratchUnavailable: `parent` cannot be listed.
    """
    try:
        found = [*Path(parent or tempfile.gettempdir()).iterdir()]
    except OSError as error:
        raise scratch_unavailable(error) from error
    return sum(_remove(path) for path in found if path.name.startswith(PREFIX))


def _make(parent: Path | None) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock(path, wait=True)
        if lock is not None and path.is_dir():
            return path, lock
        # A sweep came between making and locking it, and took it for left over.
        if lock is not None:
            os.close(lock)


def _remove(path: Path) -> bool:
    try:
        lock = _lock(path, wait=False)
    except OSError:
        # No directory, or another user's.
        return False
    if lock is None:
        return False
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
