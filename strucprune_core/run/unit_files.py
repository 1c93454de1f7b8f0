"""What finished units have left, read back: arrays, tensors, matrices and typed values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from strucprune_core.checkpoint.bundle import load_from_bundle, map_from_bundle
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.plan.sizes import named
from strucprune_core.run.artifacts import File, ValuedArtifacts
from strucprune_core.run.finished_units import FinishedUnits
from strucprune_core.run.workspace import LostFile
from strucprune_core.scratch.mapped_matrix import HostMatrix

V = TypeVar("V")


class UnitFiles:
    """Reads a workspace. Every method raises `LostFile` for what is damaged or gone.

    Args:
        workspace: The finished units.
        device: Where tensors visit.
        panels: The pieces in which matrices are solved.
        transfers: Counts what crosses between host and device.
    """

    def __init__(
        self,
        workspace: FinishedUnits,
        device: torch.device,
        panels: Panels,
        transfers: Transfers,
    ) -> None:
        self._workspace = workspace
        self._device = device
        self._panels = panels
        self._transfers = transfers
        self._values: dict[str, tuple[Mapping[str, Any], Any]] = {}

    def path(self, file: File) -> Path:
        """A file on this machine."""
        return self._workspace.file(*file)

    def array(self, file: File) -> NDArray[Any]:
        """An array, memory-mapped and read-only."""
        array: NDArray[Any] = np.load(self.path(file), mmap_mode="r")
        return array

    def tensor(self, file: File, name: str) -> torch.Tensor:
        """One tensor of a safetensors file, on the device."""
        tensor = load_from_bundle(self.path(file), name, self._device)
        self._transfers.count(to_device=tensor.nbytes)
        return tensor

    def matrix(self, file: File, name: str) -> Matrix:
        """The same, (rows x columns) float32: on the device if it fits, else mapped to memory."""
        mapped = map_from_bundle(self.path(file), name)
        if self._panels.fits(mapped.shape[1]):
            return DeviceMatrix(self.tensor(file, name))
        return HostMatrix(mapped, self._device, self._transfers)

    def values(self, unit: ValuedArtifacts[V], size: str = "") -> V:
        """Small results of a unit.

        Args:
            unit: The unit.
            size: The size that it was done for, if that is another one.

        Raises:
            LostFile: another version of the unit wrote them; the unit is to be done again.
        """
        name = named(unit.unit, size)
        stored = self._workspace.values(name)
        known = self._values.get(name)
        if known is None or known[0] is not stored:
            known = self._values[name] = (stored, self._parsed(name, unit, stored))
        return cast(V, known[1])

    def _parsed(self, name: str, unit: ValuedArtifacts[V], stored: Mapping[str, Any]) -> V:
        try:
            return unit.read(stored)
        except ValidationError as error:
            self._workspace.forget(name)
            first = error.errors()[0]
            raise LostFile(
                f"the values of {name} in the workspace {self._workspace.uri} are not what "
                f"this version writes ({'.'.join(map(str, first['loc']))}: {first['msg']})",
                name,
            ) from error
