"""How a unit follows others that still run: it reads what they hand on. No torch.

    A   capture.0  ▪▪▪▪▪▪▪▪  capture.2  ▪▪▪▪▪▪▪▪
    B      capture.1 ▪▪▪▪▪▪▪▪  capture.3 ▪▪▪▪▪▪▪▪

Three rules keep this right and keep it going:

- *Nothing is finished on what is not finished.* A unit that follows is stored only after those that
  it follows, and only if their manifests hold the very digests of what it read of them. Chunks are
  the same bytes whoever makes them, since all pieces follow from the specification. But this does
  not have to be believed: a unit that has read other bytes is done again.
- *Who is last makes room.* If a unit that is followed has lost its worker, somebody must do it
  before all others can go on. That is any worker that looks for work, since it comes first in the
  graph; and of those who wait for it the one that nobody follows, who has done least. It gives its
  own unit back. The others keep what they have, and go on with the chunks of the new attempt.
- *The first one waits for nobody.* Units form chains in the order of the graph, so of all that are
  being done one follows only finished ones. With it, or with the one that makes room, there is
  always somebody who can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from strucprune_core.run.artifacts import File
from strucprune_core.run.reservations import UnitReservations
from strucprune_core.run.workspace import Workspace

T = TypeVar("T")

# How long to wait before looking again for a chunk: at first, and at most.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 0.5
# How often to ask who does the units that are waited for. One answer alone may come between a
# worker's end of a unit and our look at the store, so it takes two of them to believe that nobody
# does it.
ASK_SECONDS = 2.0
_NAP_SECONDS = 0.05


class GivenBack(Exception):
    """The present unit is given up, so that this process does the one that it waits for."""


class OtherBytes(Exception):
    """What the present unit has read is not what the finished unit has left: do it again."""


class Following:
    """What this process knows of the units that its present one follows.

    Args:
        workspace: The finished units.
        reservations: Which units others have.
        safe_point: Called while waiting; may raise `errors.Stopped`.
    """

    def __init__(
        self,
        workspace: Workspace,
        reservations: UnitReservations,
        safe_point: Callable[[], None],
    ) -> None:
        self._workspace = workspace
        self._reservations = reservations
        self._safe_point = safe_point
        self._unit = ""
        self._follows: Mapping[str, tuple[str, ...]] = {}
        self._read: dict[File, tuple[Path, str | None]] = {}

    def begin(self, unit: str, follows: Mapping[str, tuple[str, ...]]) -> None:
        """The present unit is another one from now on.

        Args:
            unit: Its name.
            follows: Of every unit of the graph that follows others, these.
        """
        self._unit, self._follows, self._read = unit, follows, {}

    def path(self, file: File) -> Path:
        """A file of a unit that the present one follows, on this machine; waits until it is there.

        Raises:
            GivenBack: nobody makes it, and it is on this process to do so.
            LostFile: the unit is finished, and the file is damaged or gone.
        """
        if file not in self._read:
            found = partial(self._workspace.handed_on, *file)
            self._read[file] = self._once(file.unit, found)
        path, _ = self._read[file]
        return path

    def settle(self) -> None:
        """Wait until what was read of others is finished; the present unit may then be finished.

        Raises:
            GivenBack: nobody finishes it, and it is on this process to do so.
            OtherBytes: it was finished with other bytes.
        """
        for file, (_, sha256) in self._read.items():
            if sha256 is None:
                continue
            manifest = self._once(file.unit, partial(self._workspace.manifest, file.unit))
            entry = manifest.files.get(file.name)
            if entry is None or entry.sha256 != sha256:
                raise OtherBytes(f"{file.name} of {file.unit}")

    def _once(self, followed: str, found: Callable[[], T | None]) -> T:
        """What `found` returns, once it is something; looks at the unit again and again."""
        pause, asked_at, alone = FIRST_PAUSE_SECONDS, time.monotonic(), 0
        while (result := found()) is None:
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if time.monotonic() - asked_at >= ASK_SECONDS:
                alone = alone + 1 if self._must_make_room() else 0
                asked_at = time.monotonic()
            self._workspace.look(followed)
            if alone > 1 and found() is None:
                raise GivenBack(followed)
        return result

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._safe_point()
            time.sleep(min(left, _NAP_SECONDS))

    def _must_make_room(self) -> bool:
        """Whether a unit that is waited for is nobody's, and nobody waits for the present one."""
        held = self._reservations.held()
        if held is None or any(self._unit in self._follows.get(name, ()) for name in held):
            return False
        before = self._follows[self._unit]
        while before := tuple(name for name in before if not self._workspace.look(name)):
            if not held.issuperset(before):
                return True
            before = tuple(each for name in before for each in self._follows.get(name, ()))
        return False
