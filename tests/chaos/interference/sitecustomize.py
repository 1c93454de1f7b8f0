"""Loaded by every Python process of the arena at its start: its clock jumps, its disk fills up.

SIGUSR1 makes it write to its log where it is at that moment, in every thread.

What it does is told by files in the directory CHAOS_CONTROL, looked at anew each time:

    clock        seconds by which time.time() is off
    scratch-full while it exists, nothing can be made or reserved below TMPDIR
"""

from __future__ import annotations

import builtins
import errno
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCK, FULL = "clock", "scratch-full"


def interfere(control: Path, scratch: str) -> None:
    """Put ourselves between the program and the functions that tell time and take space."""
    right = time.time

    def wrong() -> float:
        try:
            return right() + float((control / CLOCK).read_text())
        except (OSError, ValueError):
            return right()

    time.time = wrong
    mkdir: Any = os.mkdir
    reserve: Any = os.posix_fallocate
    opening: Any = builtins.open
    full = control / FULL

    def refuse(path: object) -> None:
        if full.exists() and os.fspath(path).startswith(scratch):  # type: ignore[call-overload]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def make_directory(path: Any, *more: Any, **options: Any) -> None:
        if not options.get("dir_fd"):
            refuse(path)
        mkdir(path, *more, **options)

    def open_file(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wxa+"):
            refuse(file)
        return opening(file, mode, *more, **options)

    def reserve_space(descriptor: int, *more: int) -> None:
        refuse(Path(f"/proc/self/fd/{descriptor}").readlink())
        reserve(descriptor, *more)

    replacements: dict[tuple[Any, str], Callable[..., Any]] = {
        (os, "mkdir"): make_directory,
        (os, "posix_fallocate"): reserve_space,
        (builtins, "open"): open_file,
    }
    for (module, name), function in replacements.items():
        setattr(module, name, function)


if "CHAOS_CONTROL" in os.environ:
    faulthandler.register(signal.SIGUSR1)
    interfere(Path(os.environ["CHAOS_CONTROL"]), os.environ["TMPDIR"])
