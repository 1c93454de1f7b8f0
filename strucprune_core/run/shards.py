"""Which tensors share a file of the result. Planned before any width is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.writer import PlannedTensor, Shard, plan_shards
from strucprune_core.export import fp8
from strucprune_core.export.block_configs import padded
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import (
    Shapes,
    down_role,
    expected_tensors,
    stored_tensors,
    tensor_name,
)
from strucprune_core.plan.sites import PlannedSite
from strucprune_core.run.solutions import distilled_roles, recovered_roles
from strucprune_core.spec import Export

# Shards are planned on the dense sizes, so that their number is known before any width is.
MAX_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class ShardPlan:
    """The files of a job's result, with the tensors' dense shapes.

    Attributes:
        index: The dense checkpoint's layout.
        config: Its parsed config, with as much of what drafts further tokens as is kept.
        planned: The sites that are pruned.
        distill: Whether the model is trained as a whole.
        refit: Whether matrices behind removed blocks are solved again.
        recover: Whether FFNs are trained layer by layer.
    """

    index: CheckpointIndex
    config: ModelConfig
    planned: Sequence[PlannedSite]
    distill: bool
    refit: bool = False
    recover: bool = False

    @cached_property
    def checkpoint(self) -> list[Shard]:
        """The files of the pruned checkpoint."""
        return self._planned(stored_tensors(self.config))

    @cached_property
    def block_configs(self) -> list[Shard]:
        """The files of the export `block_configs`, filled up to the widths that it can say."""
        return self._planned(expected_tensors(padded(self.config)))

    @cached_property
    def fp8(self) -> list[Shard]:
        """The files of the export `fp8`."""
        matrices = fp8.quantised_matrices(self.config)
        shapes = fp8.with_factors(stored_tensors(self.config), matrices)
        tensors = []
        for name, shape in shapes.items():
            dense = self.index.tensors[fp8.matrix_of(name, matrices)].dtype
            tensors.append(PlannedTensor(name, fp8.stored_dtype(name, matrices, dense), shape))
        return plan_shards(tensors, MAX_SHARD_BYTES)

    def of_export(self, export: Export) -> list[Shard]:
        """The files of an export that has some of safetensors; none of others."""
        if export == "fp8":
            return self.fp8
        return self.block_configs if export == "block_configs" else []

    def layers_in(self, shards: Sequence[Shard]) -> list[list[int]]:
        """Of each file, the layers whose solutions are needed to write it."""
        solved = self._layers_by_tensor
        names = [[fp8.matrix_of(t.name, solved) for t in shard.tensors] for shard in shards]
        return [sorted({solved[name] for name in each if name in solved}) for each in names]

    @cached_property
    def _layers_by_tensor(self) -> dict[str, int]:
        """The layer of each tensor that differs from the dense one."""
        solved = {
            tensor_name(self.config, place.layer, part.role): place.layer
            for place in self.planned
            for part in (place.site.output, *place.site.coupled)
        }
        if self.refit:
            for layer in range(self.config.layers):
                solved[tensor_name(self.config, layer, down_role(self.config, layer))] = layer
        if self.recover:
            for layer in range(self.config.layers):
                for role in recovered_roles(self.config, layer):
                    solved[tensor_name(self.config, layer, role)] = layer
        if self.distill:
            for layer in range(self.config.layers):
                for role in distilled_roles(self.config, layer):
                    solved[tensor_name(self.config, layer, role)] = layer
        return solved

    def _planned(self, shapes: Shapes) -> list[Shard]:
        tensors = [
            PlannedTensor(name, self.index.tensors[name].dtype, shape)
            for name, shape in shapes.items()
        ]
        return plan_shards(tensors, MAX_SHARD_BYTES)


def as_written(
    shards: Sequence[Shard], shapes: Shapes, names: Mapping[str, str] | None = None
) -> list[Shard]:
    """The same files with the tensors that are left, in their shapes and under their new names.

    Args:
        shards: The files with dense tensors.
        shapes: Shapes of the tensors that are left, by their new names.
        names: New names of the tensors that are left, by their old ones; None: all keep theirs.
    """
    written: list[Shard] = []
    for shard in shards:
        left: list[PlannedTensor] = []
        for tensor in shard.tensors:
            name = tensor.name if names is None else names.get(tensor.name)
            if name is not None and name in shapes:
                left.append(replace(tensor, name=name, shape=shapes[name]))
        written.append(replace(shard, tensors=tuple(left)))
    return written
