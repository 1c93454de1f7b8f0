"""Start a program that dies with the process that started it.

    python -I -S worker/die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

The kernel's parent-death signal (Linux) is set between fork and exec by this tiny program rather
than by a `preexec_fn`, which may deadlock in a process with threads. On other systems the program
starts without it.

The kernel sends the signal when the *thread* that forked ends, so such programs must be started
from a thread that lives as long as its process: `command` refuses all but the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence

# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends.

    Args:
        parent_pid: The parent this process was started by. If it is gone already, exit now: its
            death came before the request and will never be signalled.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` so that it dies with this process.

    Raises:
        RuntimeError: called from another thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("A program that dies with its parent needs the main thread to start it.")
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # the point of this program
