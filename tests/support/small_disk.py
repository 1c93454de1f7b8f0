"""A disk of any size: a tmpfs that only one process, and what it starts, can see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_PRIVATE_MOUNTS = (["unshare", "-m"], ["unshare", "-Urm"])


def private_mounts(place: Path) -> list[str] | None:
    """A command before which another may mount what only it sees; None if this user may not.

    Args:
        place: A directory to try it on.
    """
    for prefix in _PRIVATE_MOUNTS:
        mount = [*prefix, "mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(place)]
        if shutil.which(prefix[0]) and not subprocess.run(mount, capture_output=True).returncode:
            return prefix
    return None


def on_a_disk_of(prefix: list[str], size: str, place: Path, command: list[str]) -> list[str]:
    """The command, which finds a new disk of that size (`64k`) at a directory.

    Args:
        prefix: What `private_mounts` has found.
        size: As tmpfs takes it.
        place: The directory.
        command: What is to run.
    """
    script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    return [*prefix, "sh", "-c", script, "sh", size, str(place), *command]


def seen_by(pid: int, place: Path) -> Path:
    """A directory as a process with mounts of its own sees it."""
    return Path(f"/proc/{pid}/root") / place.relative_to("/")
