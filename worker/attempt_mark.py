"""A file that an attempt leaves with its temporary files, in case its worker is killed with it.

Since 1.28 Kubernetes kills the control group of a container as a whole (`memory.oom.group`). Then a
solve that takes too much memory ends its supervisor too, and no process is left to report why. The
container starts again with the same scratch volume, where the next worker finds this file. The
control group's counters start anew, but the machine's counter of kills goes on. If it has grown
since the attempt began, and the attempt ended without a report, the attempt ran out of memory.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from api.jobs.record import Claim
from strucprune_core.oom import machine_kills

_NAME = "attempt.json"
_PROC = Path("/proc")


class AttemptMark(BaseModel):
    """An attempt, and the state of its machine when it began.

    Attributes:
        job_id: Its job.
        fence: Of its claim.
        boot: Id of the machine's boot: its counters start anew with each.
        kills: Kills for memory on this machine until then; None if the kernel does not count them.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    fence: int
    boot: str
    kills: int | None

    def out_of_memory(self, proc: Path = _PROC) -> bool:
        """Whether the kernel has killed a process for memory since, on the same boot."""
        now = machine_kills(proc)
        return (
            self.kills is not None
            and now is not None
            and _boot(proc) == self.boot
            and now > self.kills
        )


def leave_mark(directory: Path, claim: Claim, proc: Path = _PROC) -> None:
    """Write the mark of an attempt that begins."""
    mark = AttemptMark(
        job_id=claim.job_id, fence=claim.fence, boot=_boot(proc), kills=machine_kills(proc)
    )
    # Without the mark, the attempt counts as one whose worker was lost.
    with contextlib.suppress(OSError):
        (directory / _NAME).write_text(mark.model_dump_json())


def read_mark(directory: Path) -> AttemptMark | None:
    """The mark that was left in a directory of temporary files, if there is one."""
    try:
        return AttemptMark.model_validate_json((directory / _NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def _boot(proc: Path) -> str:
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
