"""Counts what crosses between host and device, and what is read of a model. No torch.

On a CPU the same places count, as if the CPU were a device: so a plan of what a GPU is sent can be
tested without one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple


class Transferred(NamedTuple):
    """Bytes by direction.

    Attributes:
        read: From the model's files.
        to_device: From host to device.
        to_host: From device to host.
    """

    read: int = 0
    to_device: int = 0
    to_host: int = 0

    def plus(self, other: Transferred) -> Transferred:
        """The sum of both."""
        return Transferred(*(mine + its for mine, its in zip(self, other, strict=True)))

    def times(self, count: int) -> Transferred:
        """The same so often."""
        return Transferred(*(count * size for size in self))

    @classmethod
    def total(cls, parts: Iterable[Transferred]) -> Transferred:
        """The sum of all."""
        found = cls()
        for part in parts:
            found = found.plus(part)
        return found


NOTHING = Transferred()


class Transfers:
    """Sums of bytes since they were last taken. Threads may count side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = [0, 0, 0]

    def count(self, *, read: int = 0, to_device: int = 0, to_host: int = 0) -> None:
        """Add bytes."""
        with self._lock:
            for place, size in enumerate((read, to_device, to_host)):
                self._sums[place] += size

    def take(self) -> Transferred:
        """The sums, which begin again with nothing."""
        with self._lock:
            taken, self._sums = Transferred(*self._sums), [0, 0, 0]
        return taken
