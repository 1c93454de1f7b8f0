"""`strucprune prune` as a real process that is killed (SIGKILL) at random instants of its life.

    python -m tests.support.kills < job.json

runs the command in forked children, because importing torch takes longer than the command: this
process imports everything and forks before torch has started a thread. A child is killed by a timer
on its own processor time, so that a busy machine neither moves the instant nor saves it.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_ATTEMPTS_PER_KILL = 5
_SIGEV_SIGNAL = 0


class _SignalEvent(ctypes.Structure):
    """struct sigevent, 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


def kill_after(seconds: float) -> None:
    """Have the kernel kill this process (SIGKILL) after so much processor time of its own."""
    timer = ctypes.c_void_p()
    event = _SignalEvent(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    nanoseconds = max(1, round(seconds * 1e9))
    # struct itimerspec: interval (none), and the first time.
    when = (ctypes.c_long * 4)(0, 0, nanoseconds // 10**9, nanoseconds % 10**9)
    libc = ctypes.CDLL(None, use_errno=True)
    clock = ctypes.c_int(time.CLOCK_PROCESS_CPUTIME_ID)
    made = libc.timer_create(clock, ctypes.byref(event), ctypes.byref(timer))
    if made != 0 or libc.timer_settime(timer, 0, when, None) != 0:
        raise OSError(ctypes.get_errno(), "there is no timer of processor time")


def attempt(arguments: list[str], seconds: float | None = None) -> tuple[int, float]:
    """Run the command in a child, killed after so much processor time: exit status, time taken."""
    pid = os.fork()
    if pid:
        _, status, usage = os.wait4(pid, 0)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    status = 1
    try:
        from strucprune_core.commands.main import main

        os.dup2(2, 1)
        sys.argv = ["strucprune", *arguments]
        if seconds is not None:
            kill_after(seconds)
        main()
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_again_and_again(command: list[str], base: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run a command undisturbed; then kill it so often, going on until it is done each time.

    Args:
        command: Arguments, in which `{root}` stands for a directory: `base/undisturbed`, then
            `base/0`, and the next number each time the job is done.
        base: Where those directories are.
        kills: How many.
        seed: Of the instants, which are drawn from the whole life of the undisturbed run.

    Returns:
        `statuses` of all attempts, -9 if killed, and how many `jobs` were done.
    """

    def run(name: str, seconds: float | None = None) -> tuple[int, float]:
        root = str(base / name)
        return attempt([part.replace("{root}", root) for part in command], seconds)

    status, life = run("undisturbed")
    statuses = [status]
    draw = random.Random(seed)
    jobs = 0
    while statuses.count(-signal.SIGKILL) < kills and len(statuses) < _ATTEMPTS_PER_KILL * kills:
        status, _ = run(str(jobs), draw.uniform(0.0, life))
        statuses.append(status)
        jobs += status == 0
    if statuses[-1] != 0:
        statuses.append(run(str(jobs))[0])
        jobs += 1
    return {"statuses": statuses, "jobs": jobs}


def in_a_process_of_its_own(command: list[str], base: Path, kills: int, seed: int) -> Any:
    """`kill_again_and_again` beside a test, whose process may have threads."""
    job = {"command": command, "base": str(base), "kills": kills, "seed": seed}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kills"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(base)},
        cwd=Path(__file__).parents[2],
    )
    return json.loads(done.stdout)


def _serve() -> None:
    # What the command imports as it goes, so that no attempt spends its time on that.
    import strucprune_core.evaluation.transformers_reference
    import strucprune_core.pipeline  # noqa: F401

    job = json.load(sys.stdin)
    result = kill_again_and_again(job["command"], Path(job["base"]), job["kills"], job["seed"])
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    _serve()
