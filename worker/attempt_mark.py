"""What an attempt leaves beside its temporary files, in case all of the worker dies with it.

Where the control group of a container is killed as a whole (`memory.oom.group`, which Kubernetes
sets since 1.28), a solve that takes too much memory takes its supervisor along: nobody is left to
tell why. The container is then started again with the same scratch volume, and in it lies the mark.
The counters of the control group are new, but the machine's goes on: if the kernel has killed for
memory since the attempt began, and the attempt ended without a word, it ran out of memory.
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
    """An attempt, and the machine when it began.

    Attributes:
        job_id: Its job.
        fence: Of its claim.
        boot: The machine's boot; counters of another one mean nothing.
        kills: How often the kernel had killed for memory on this machine; None if it does not tell.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    fence: int
    boot: str
    kills: int | None

    def out_of_memory(self, proc: Path = _PROC) -> bool:
        """Whether the kernel has killed for memory since it began, on the same boot."""
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
    # Without it the attempt is taken for one whose worker was lost.
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
