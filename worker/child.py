"""The solve as its supervisor sees it: a child process that sends messages."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from worker import die_with_parent
from worker.protocol import Answer, Held, Message, Request, parse_message

_log = logging.getLogger(__name__)

SOLVE = (sys.executable, "-m", "worker.solve")
# From the end of its output to the end of the process: it releases the device's memory meanwhile.
_EXIT_SECONDS = 30.0
_READ_BYTES = 65536


class SolveProcess:
    """A running solve. It dies with this process, and so do the processes that it starts.

    Args:
        request: What it is to do.
        argv: Its program; tests replace it.
    """

    def __init__(self, request: Request, argv: Sequence[str] = SOLVE) -> None:
        self._process = subprocess.Popen(
            die_with_parent.command(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._rest = b""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the solve was started without pipes")
        self._output = self._process.stdout.fileno()
        self._say(request)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    def receive(self, timeout_seconds: float) -> list[Message] | None:
        """Messages that came within the timeout, perhaps none; None once the output has ended."""
        readable, _, _ = select.select([self._output], [], [], timeout_seconds)
        if not readable:
            return []
        data = os.read(self._output, _READ_BYTES)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [message for line in lines if (message := _parse(line)) is not None]

    def answer(self, answer: Answer | Held) -> None:
        """Answer what it asked about units."""
        self._say(answer)

    def _say(self, what: BaseModel) -> None:
        # The solve may have ended. `receive` and `wait` notice that.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(what.model_dump_json().encode() + b"\n")
                self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask it to stop at its next safe point."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now, with everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status once its output has ended; negative if a signal ended it."""
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs, and free its pipes."""
        if self._process.poll() is None:
            self.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # Closing flushes, which fails if the solve ended before it had read everything.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def _parse(line: bytes) -> Message | None:
    try:
        return parse_message(line)
    except ValidationError:
        _log.warning("the solve wrote a line that is no message: %r", line[:200])
        return None
