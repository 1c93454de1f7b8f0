"""The process that reads texts, forked from one that has imported its program.

A start of Python and its libraries takes longer than a tiny job does, and every job needs one for
each of its texts. The program, its limits and its messages are the same. What is not tested this
way is the start itself: tests of `text_process`, of the command and of the service start it as jobs
do.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from typing import IO, Any

from strucprune_core.calibration import text_process_main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class ForkedProcess:
    """What jobs use of `subprocess.Popen`.

    Args:
        environment: The program's whole environment.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        given, writes = os.pipe()
        reads, answers = os.pipe()
        self.stdin: IO[bytes] = os.fdopen(writes, "wb")
        self.stdout: IO[bytes] = os.fdopen(reads, "rb")
        self._process = _CONTEXT.Process(target=_Program(given, answers, environment))
        self._process.start()
        os.close(given)
        os.close(answers)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("the process that reads texts", timeout or 0.0)
        return status


class _Program:
    """What the forked process does; its pipes reach it as its start is pickled."""

    def __init__(self, given: int, answers: int, environment: Mapping[str, str]) -> None:
        self._descriptors = (given, answers, 2)
        self._environment = dict(environment)

    def __getstate__(self) -> dict[str, Any]:
        pipes = [DupFd(each) for each in self._descriptors]
        return {"pipes": pipes, "environment": self._environment}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._descriptors = tuple(pipe.detach() for pipe in state["pipes"])
        self._environment = state["environment"]

    def __call__(self) -> None:
        for number, descriptor in enumerate(self._descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(self._environment)
        sys.exit(text_process_main.main())
