"""What a step may ask of finished units, and how a size of several finds its own among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strucprune_core.plan.sizes import named
from strucprune_core.run.manifest import Manifest, StoredFile
from strucprune_core.run.workspace import Workspace


class FinishedUnits(Protocol):
    """The finished units of a job, by names without a size: see `run.workspace.Workspace`."""

    @property
    def uri(self) -> str:
        """Where they lie."""
        ...

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        ...

    def values(self, unit: str) -> dict[str, Any]:
        """Small results of a finished unit."""
        ...

    def stored_file(self, unit: str, name: str) -> StoredFile:
        """The record of a finished unit's file."""
        ...

    def has_file(self, unit: str, name: str) -> bool:
        """Whether a finished unit's file is there in full."""
        ...

    def file(self, unit: str, name: str) -> Path:
        """A finished unit's file on this machine."""
        ...

    def forget(self, unit: str) -> None:
        """Make a finished unit unfinished."""
        ...


@dataclass(frozen=True)
class UnitsOfSize:
    """The units of one size of several, and those that all sizes share, as `FinishedUnits`.

    Attributes:
        workspace: The units of all sizes.
        size: The label of this one.
        own: Names of the units that it does for itself.
    """

    workspace: Workspace
    size: str
    own: frozenset[str]

    @property
    def uri(self) -> str:
        """Where they lie."""
        return self.workspace.uri

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        return self.workspace.manifest(self._name(unit))

    def values(self, unit: str) -> dict[str, Any]:
        """Small results of a finished unit."""
        return self.workspace.values(self._name(unit))

    def stored_file(self, unit: str, name: str) -> StoredFile:
        """The record of a finished unit's file."""
        return self.workspace.stored_file(self._name(unit), name)

    def has_file(self, unit: str, name: str) -> bool:
        """Whether a finished unit's file is there in full."""
        return self.workspace.has_file(self._name(unit), name)

    def file(self, unit: str, name: str) -> Path:
        """A finished unit's file on this machine."""
        return self.workspace.file(self._name(unit), name)

    def forget(self, unit: str) -> None:
        """Make a finished unit unfinished."""
        self.workspace.forget(self._name(unit))

    def _name(self, unit: str) -> str:
        return named(unit, self.size) if unit in self.own else unit
