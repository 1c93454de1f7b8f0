"""Failures of a solve as the job's record shows them, whether the solve reported them or died."""

from __future__ import annotations

import errno
import signal
from typing import Any, ClassVar

from strucprune_core.errors import OutOfMemory, ScratchUnavailable, StrucPruneError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class SolveCrashed(StrucPruneError):
    """The solve ended without a report."""

    code: ClassVar[str] = "solve_crashed"
    retryable: ClassVar[bool] = True


class SolveStalled(StrucPruneError):
    """The solve reported nothing for too long."""

    code: ClassVar[str] = "solve_stalled"
    retryable: ClassVar[bool] = True


class DeadlineExceeded(StrucPruneError):
    """The job ran longer than its `runtime.deadline_seconds`."""

    code: ClassVar[str] = "deadline_exceeded"


class WorkerFailed(StrucPruneError):
    """The worker met an unexpected error."""

    code: ClassVar[str] = "worker_failed"
    retryable: ClassVar[bool] = True


def as_ours(error: BaseException) -> StrucPruneError:
    """The failure of a solve, as its job's record shows it."""
    if isinstance(error, StrucPruneError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("The machine ran out of memory.", remedy="Use one with more memory.")
    if isinstance(error, OSError) and error.errno in _FULL:
        # This is the scratch disk: stores report failures of their own as `StrucPruneError`.
        return ScratchUnavailable("There is no room for temporary files.", field="scratch")
    # The message of another library's exception may quote data or paths, so only its type is shown.
    return StrucPruneError(
        f"The solve met an unexpected error ({type(error).__name__}).",
        remedy="The worker's log has the details.",
    )


def unforeseen(error: Exception) -> StrucPruneError:
    """The failure of the worker itself. The message may quote data or paths, so it is left out."""
    return WorkerFailed(
        f"The worker met an unexpected error ({type(error).__name__}).",
        remedy="The worker's log has the details.",
    )


def no_room(needed_bytes: int) -> StrucPruneError:
    """Why free workers leave a job in the queue.

    The text is the same from every worker, so that the job reports it once.
    """
    needed = f" ({needed_bytes:,} bytes)" if needed_bytes else ""
    return ScratchUnavailable(
        f"No free worker has space for the job's temporary files{needed}.",
        field="scratch",
        remedy="The job waits for a worker that has. The service's operator can give workers more "
        "space in STRUCPRUNE_SCRATCH_DIRECTORY; a job with fewer calibration.samples needs less.",
    )


def crash(
    returncode: int, progress: dict[str, Any] | None, *, oom_killed: bool = False
) -> StrucPruneError:
    """The failure of a solve that ended without reporting one.

    Args:
        returncode: Its exit status, negative if a signal ended it.
        progress: The last progress that it reported, if any.
        oom_killed: Whether the kernel killed a process for memory meanwhile.
    """
    phase = progress.get("phase") if progress else None
    if returncode == -signal.SIGKILL and oom_killed:
        return OutOfMemory(
            "The solve was killed because the machine ran out of memory.",
            remedy="Lower runtime.micro_batch_tokens, or use a machine with more memory.",
            phase=phase,
        )
    how = f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"status {returncode}"
    return SolveCrashed(
        f"The solve ended unexpectedly ({how}).",
        remedy="The worker's log has the details.",
        phase=phase,
    )


def stalled(seconds: float, progress: dict[str, Any] | None) -> StrucPruneError:
    """The failure of a solve that was killed because it reported nothing."""
    return SolveStalled(
        f"The solve reported nothing for {seconds:.0f} s and was killed.",
        remedy="If the device is healthy, raise the worker's STRUCPRUNE_STALL_SECONDS. A job that "
        "stalls three times in a row at the same place fails.",
        phase=progress.get("phase") if progress else None,
    )


def deadline(seconds: float, progress: dict[str, Any] | None) -> StrucPruneError:
    """The failure of a job that exceeded its deadline."""
    return DeadlineExceeded(
        f"The job did not finish within its deadline of {seconds:.0f} s.",
        field="runtime.deadline_seconds",
        remedy="Raise the deadline, or lower calibration.samples.",
        phase=progress.get("phase") if progress else None,
    )
