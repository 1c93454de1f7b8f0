"""Whether the kernel killed a process for memory. Nothing else tells this from another `kill -9`.

The kernel counts its kills: for a control group in `memory.events` (version 2) or
`memory.oom_control` (version 1), for the whole machine in `/proc/vmstat`. The machine's counter is
asked only where no group's is readable, since it also counts the kills of others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_COUNTER = "oom_kill"


class OomWatch:
    """Reads the counters when it is made, and says whether one has grown since.

    Args:
        proc: Where the kernel shows processes.
        cgroups: Where it shows control groups.
    """

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        groups = _readable(_group_files(proc, cgroups))
        self._files = groups or _readable([proc / "vmstat"])
        self._before = self._kills()

    def fired(self) -> bool:
        """Whether the kernel has killed a process of this group (or machine) for memory since."""
        return self._kills() > self._before

    def _kills(self) -> int:
        return sum(_count(path) or 0 for path in self._files)


def machine_kills(proc: Path = _PROC) -> int | None:
    """How often the kernel has killed for memory since the machine started; None if unknown."""
    return _count(proc / "vmstat")


def _group_files(proc: Path, cgroups: Path) -> Iterable[Path]:
    """Files that may count the kills in this process's control group, by version and mount."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        # A container does not see the group's own path: there the root is the group.
        for place in dict.fromkeys((group.strip("/"), "")):
            if not controllers:
                yield cgroups / place / "memory.events"
            elif "memory" in controllers.split(","):
                yield cgroups / "memory" / place / "memory.oom_control"


def _readable(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if _count(path) is not None]


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == _COUNTER and value.strip().isdigit():
            return int(value)
    return None
