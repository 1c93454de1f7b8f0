"""The solve's connection to its supervisor: messages on stdout, answers on stdin."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel

from strucprune_core.errors import Stopped
from worker.protocol import Answer, Held, HeldMessage, Request, ReserveMessage

A = TypeVar("A", Answer, Held)

_READ_BYTES = 65536
# How soon a stop is noticed while the solve waits for an answer.
_TICK_SECONDS = 0.1


class Channel:
    """Messages to the supervisor, on a descriptor that nothing else writes to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def take_stdout(cls) -> Channel:
        """Move standard output to a private descriptor. What libraries print goes to the log."""
        sys.stdout.flush()
        descriptor = os.dup(1)
        os.dup2(2, 1)
        return cls(descriptor)

    def send(self, message: BaseModel) -> None:
        """Write one line."""
        data = message.model_dump_json().encode() + b"\n"
        with self._lock:  # log lines may come from any thread
            while data:
                data = data[os.write(self._descriptor, data) :]


class Inbox:
    """Lines from the supervisor.

    Args:
        descriptor: The descriptor of standard input.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""

    def line(self, check: Callable[[], None] = lambda: None) -> bytes | None:
        """The next line; None if the supervisor closed the pipe. Calls `check` while it waits."""
        while b"\n" not in self._data:
            readable, _, _ = select.select([self._descriptor], [], [], _TICK_SECONDS)
            check()
            if readable:
                data = os.read(self._descriptor, _READ_BYTES)
                if not data:
                    break
                self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return line or None

    def request(self) -> Request:
        """The first line."""
        line = self.line()
        if line is None:
            raise EOFError("the supervisor sent no request")
        return Request.model_validate_json(line)


class AskedReservations:
    """Reservations of units (see `strucprune_core.run.reservations`), made by the supervisor.

    Args:
        channel: Takes requests.
        inbox: Gives answers.
        check: Raises `Stopped` if the solve is to stop.
    """

    shared = True

    def __init__(self, channel: Channel, inbox: Inbox, check: Callable[[], None]) -> None:
        self._channel = channel
        self._inbox = inbox
        self._check = check

    def reserve(self, ready: Sequence[str], keeping: str | None = None) -> str | None:
        """See `UnitReservations.reserve`."""
        return self._ask(ReserveMessage(ready=[*ready], keeping=keeping), Answer).unit

    def held(self) -> frozenset[str] | None:
        """See `UnitReservations.held`."""
        units = self._ask(HeldMessage(), Held).units
        return None if units is None else frozenset(units)

    def _ask(self, question: BaseModel, kind: type[A]) -> A:
        """What the supervisor answers.

        Raises:
            Stopped: it wants the solve to end, or is gone.
        """
        self._channel.send(question)
        line = self._inbox.line(self._check)
        answer = None if line is None else kind.model_validate_json(line)
        if answer is None or not answer.go:
            raise Stopped("The supervisor has no more work for the solve.")
        return answer
