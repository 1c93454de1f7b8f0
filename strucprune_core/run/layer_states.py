"""Layers in training, each in a file: its matrices and their moments.

A unit of distillation goes on from the files of the unit before and writes its own; the first one
begins with the weights that it is given.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from strucprune_core.checkpoint.bundle import load_from_bundle, save_bundle
from strucprune_core.method.training.distillation import Trained
from strucprune_core.models.streaming import ModelStream
from strucprune_core.run.artifacts import Distill
from strucprune_core.run.context import Job
from strucprune_core.run.solutions import distilled_roles
from strucprune_core.run.workspace import Draft

_PARTS = ("weight", "first", "second")
_WEIGHT, *_MOMENTS = _PARTS


class LayerStates:
    """The states of all layers in one unit.

    Args:
        job: The job.
        unit: The unit of distillation.
        draft: Where it writes.
        given: The pruned model before distillation.
    """

    def __init__(self, job: Job, unit: Distill, draft: Draft, given: ModelStream) -> None:
        self._job, self._unit, self._draft, self._given = job, unit, draft, given
        self._updated: set[int] = set()

    def matrices(self, layer: int) -> dict[str, Tensor]:
        """A layer's matrices in training by role, on the device; a forward pass needs no more."""
        file = self._file(layer)
        if file is None:
            return {role: matrix.clone() for role, matrix in self.given_matrices(layer).items()}
        roles = distilled_roles(self._given.config, layer)
        return {role: self._read(file, role, _WEIGHT) for role in roles}

    def given_matrices(self, layer: int) -> dict[str, Tensor]:
        """The same before distillation."""
        given = self._given.in_float32.whole_layer(layer)
        return {role: given[role] for role in distilled_roles(self._given.config, layer)}

    def load(self, layer: int) -> dict[str, Trained]:
        """The same matrices with their moments."""
        matrices, file = self.matrices(layer), self._file(layer)
        if file is None:
            return {role: Trained.start(matrix) for role, matrix in matrices.items()}
        return {
            role: Trained(matrix, *(self._read(file, role, moment) for moment in _MOMENTS))
            for role, matrix in matrices.items()
        }

    def save(self, layer: int, states: dict[str, Trained]) -> None:
        """Replace a layer's state."""
        file = self._path(layer)
        new = file.with_suffix(".new")
        tensors = {
            f"{role}.{part}": getattr(state, part).cpu()
            for role, state in states.items()
            for part in _PARTS
        }
        self._job.transfers.count(to_host=sum(tensor.nbytes for tensor in tensors.values()))
        save_bundle(new, tensors)
        new.replace(file)
        self._updated.add(layer)

    def keep_all(self) -> None:
        """Leave the state of every layer for the next unit."""
        for layer in set(range(self._job.config.layers)) - self._updated:  # Training diverged.
            self.save(layer, self.load(layer))

    def discard(self, layer: int) -> None:
        """Leave no state of a layer."""
        self._path(layer).unlink(missing_ok=True)

    def _file(self, layer: int) -> Path | None:
        """Where a layer's state lies; None before the first step."""
        if layer in self._updated:
            return self._path(layer)
        if self._unit.number == 0:
            return None
        return self._job.units.path(Distill(self._unit.number - 1).state(layer))

    def _path(self, layer: int) -> Path:
        return self._draft.path(self._unit.state(layer).name)

    def _read(self, file: Path, role: str, part: str) -> Tensor:
        # A copy, since updates are made in place and a mapped file must not change.
        tensor = load_from_bundle(file, f"{role}.{part}", self._job.device)
        self._job.transfers.count(to_device=tensor.nbytes)
        return tensor
