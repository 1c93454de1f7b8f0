"""How fast both models are, and what memory they take, measured in turns on one machine.

    dense     load   warm up          1           4  5           …   peak
    pruned           load   warm up      2     3        6        …   peak

Each model is whole in a process of its own (`speed_process`). Only one of them computes at a time.
Whatever else the machine does slows both, and which of them comes first changes with every round.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.child_environment import ACCELERATOR, child_environment
from strucprune_core.evaluation.speed_process import Asked, Loaded, Peak, Request, Round
from strucprune_core.report.document import MeasuredModel, SpeedRun

M = TypeVar("M", bound=BaseModel)

_PROGRAM = "strucprune_core.evaluation.speed_process"
# A process that answers nothing for this long is given up.
SILENT_SECONDS = 1800.0
_TICK_SECONDS = 0.1
_EXIT_SECONDS = 10.0
_MOST_BYTES = 1 << 20
_SETTINGS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class NotMeasured(Exception):
    """The speed could not be measured; the message says why. The result is as good as before."""


class Measured(Protocol):
    """One model in its process."""

    def loaded(self) -> Loaded:
        """Wait until the model is loaded."""
        ...

    def round(self) -> Round:
        """Measure once."""
        ...

    def peak(self) -> int:
        """Most memory since the model was loaded, in bytes."""
        ...


class SpeedProcess:
    """A process that has loaded a model. A context manager; leaving it ends the process.

    Args:
        request: What is measured.
        wait: Called ten times a second while there is no answer; may raise.
    """

    def __init__(self, request: Request, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(_SETTINGS, ACCELERATOR),
        )
        self._send(request.model_dump_json())

    def __enter__(self) -> SpeedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def loaded(self) -> Loaded:
        """Wait until the model is loaded.

        Raises:
            NotMeasured: it cannot be loaded, or the process ended. So do the other methods.
        """
        return self._answer(Loaded)

    def round(self) -> Round:
        """Measure once."""
        return self._ask("round", Round)

    def peak(self) -> int:
        """Most memory since the model was loaded, in bytes."""
        return self._ask("peak", Peak).bytes

    def _ask(self, what: Asked, kind: type[M]) -> M:
        self._send(what)
        return self._answer(kind)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was opened with a pipe
        with contextlib.suppress(BrokenPipeError):  # If it has ended, reading from it says so.
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self, kind: type[M]) -> M:
        line = self._line()
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            raise NotMeasured(_reason(line)) from None

    def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - it was opened with a pipe
        source, until = self._process.stdout.fileno(), time.monotonic() + SILENT_SECONDS
        while b"\n" not in self._buffer:
            if not select.select([source], [], [], _TICK_SECONDS)[0]:
                self._wait()
                if time.monotonic() > until:
                    raise NotMeasured(f"a model has not answered for {SILENT_SECONDS:.0f} s")
                continue
            data = os.read(source, _MOST_BYTES)
            if not data or len(self._buffer) > _MOST_BYTES:
                raise NotMeasured(self._ended())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_EXIT_SECONDS)
            if status < 0:
                return f"the process that measures was killed by signal {-status}"
        return "the process that measures ended"


def _reason(line: bytes) -> str:
    """What a process says of its failure; a model's author may have chosen the words."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and "error" in found:
            return f"transformers cannot run a model whole: {shown(str(found['error']), 300)}"
    return "the process that measures sent something else than an answer"


def measure_in_turns(
    models: Mapping[MeasuredModel, Measured],
    rounds: int,
    done: Callable[[], None] = lambda: None,
) -> list[SpeedRun]:
    """Measure both models in every round; which of them comes first changes each time.

    Args:
        models: The loaded models.
        rounds: How often. One round before them is not recorded.
        done: Called after each measurement.

    Returns:
        The measurements in their order.
    """
    order = list(models)
    for name in order:
        models[name].round()
        done()
    runs: list[SpeedRun] = []
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            found = models[name].round()
            runs.append(SpeedRun(model=name, **found.model_dump()))
            done()
    return runs
