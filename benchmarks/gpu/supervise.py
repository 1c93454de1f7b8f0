"""Runs a part in a process of its own, which is killed at its limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from benchmarks.gpu.record import Record, Status


def supervise(command: Sequence[str], part: str, limit_seconds: float, record: Record) -> Status:
    """Run a command that keeps a part's findings, and record how it ended."""
    record.update(part, status="running", limit_seconds=limit_seconds)
    began = time.monotonic()
    code: int | None = None
    # A session of its own: what it has started is killed with it.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    status: Status = "time limit" if code is None else "failed" if code else "done"
    record.update(part, status=status, seconds=round(time.monotonic() - began, 1))
    return status
