"""How much memory further processes may take: of the machine, or of the control group."""

from __future__ import annotations

from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that are free or can be freed; None if the kernel does not say.

    Args:
        proc: Where the kernel shows processes.
        cgroups: Where it shows control groups (version 2).
    """
    known = [each for each in (_of_machine(proc), *_of_groups(proc, cgroups)) if each is not None]
    return min(known, default=None)


def _of_machine(proc: Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_groups(proc: Path, cgroups: Path) -> list[int]:
    """What is left of each limit that holds for this process."""
    found: list[int] = []
    for line in _lines(proc / "self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers:
            continue  # Of version 1.
        place = cgroups / group.strip("/")
        # A limit of a group holds for those in it, up to the root.
        for each in (place, *place.parents):
            if each == cgroups.parent:
                break
            found += _left(each)
    return found


def _left(group: Path) -> list[int]:
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if not limit or not used or not limit[0].isdigit():
        return []
    # The page cache counts as used, but is given up first.
    cache = [line.split()[1] for line in _lines(group / "memory.stat") if line.startswith("file ")]
    return [max(0, int(limit[0]) - int(used[0]) + sum(map(int, cache)))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
