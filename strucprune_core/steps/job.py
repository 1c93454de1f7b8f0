"""What every step of a job is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.checkpoint.writer import PlannedTensor, Shard, plan_shards
from strucprune_core.models.adapter import Adapter
from strucprune_core.models.config import ModelConfig, expected_tensors
from strucprune_core.models.streaming import ModelStream
from strucprune_core.solver.ridge import default_damping
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import Store
from strucprune_core.surgery.pruned_source import LayerSolution, PrunedSource
from strucprune_core.units import Unit, build_graph
from strucprune_core.workspace import Workspace

# Shards are planned on the dense sizes, so that their number is known before any width is.
MAX_SHARD_BYTES = 1 << 30
HOLDOUT_SHARE = 16  # One calibration sequence in 16 is held out, at least one.
PROBE_SEQUENCES, PROBE_TOKENS = 2, 256  # As good as four of 512, at a quarter of the time.


@dataclass(frozen=True)
class Job:
    """One pruning job while it runs.

    Attributes:
        spec: What was asked for.
        index: The dense checkpoint's layout.
        config: Its parsed config.
        adapter: Its architecture.
        workspace: Finished units.
        scratch: Directory for temporary files.
        device: Where tensors visit.
        open_store: Opens the store of a URI.
        tick: Called at safe points with (done, total) of the unit; may raise `errors.Stopped`.
    """

    spec: JobSpec
    index: CheckpointIndex
    config: ModelConfig
    adapter: Adapter
    workspace: Workspace
    scratch: Path
    device: torch.device
    open_store: Callable[[str], Store]
    tick: Callable[[int, int], None]

    @cached_property
    def reader(self) -> TensorReader:
        """Dense tensors by name."""
        return TensorReader(self.index)

    @cached_property
    def dense(self) -> ModelStream:
        """The dense model."""
        return ModelStream(self.adapter, self.reader, self.device)

    @cached_property
    def dense_parameters(self) -> int:
        """Parameters of the dense model."""
        return sum(
            math.prod(tensor.shape) for shard in self.dense_shards for tensor in shard.tensors
        )

    @cached_property
    def graph(self) -> list[Unit]:
        """The job's units, in order."""
        return build_graph(
            layers=self.config.layers,
            shards=len(self.dense_shards),
            probes=self.spec.pruning.allocation == "threshold",
            evaluate=self.spec.evaluation is not None,
        )

    @cached_property
    def holdout_sequences(self) -> int:
        """Calibration sequences kept out of the statistics: the last ones."""
        return max(1, self.spec.calibration.samples // HOLDOUT_SHARE)

    @cached_property
    def train_sequences(self) -> int:
        """Calibration sequences that the statistics are computed on: the first ones."""
        return self.spec.calibration.samples - self.holdout_sequences

    @property
    def probe_shape(self) -> tuple[int, int]:
        """(sequences, tokens) of the held-out text that energies are probed on."""
        sequences = min(PROBE_SEQUENCES, self.holdout_sequences)
        return sequences, min(PROBE_TOKENS, self.spec.calibration.sequence_length)

    @property
    def damping(self) -> float:
        """Ridge of the reconstruction, relative to the Gram's mean diagonal."""
        tokens = self.train_sequences * self.spec.calibration.sequence_length
        return self.spec.pruning.damping or default_damping(tokens)

    @cached_property
    def dense_shards(self) -> list[Shard]:
        """Which tensors share an output file."""
        names = expected_tensors(self.config)
        infos = [self.index.tensors[name] for name in names]
        planned = [PlannedTensor(info.name, info.dtype, info.shape) for info in infos]
        return plan_shards(planned, MAX_SHARD_BYTES)

    def array(self, unit: str, name: str) -> NDArray[Any]:
        """A finished unit's array, memory-mapped and read-only."""
        array: NDArray[Any] = np.load(self.workspace.file(unit, name), mmap_mode="r")
        return array

    def solution(self, layer: int) -> LayerSolution:
        """What solving a layer gave."""
        return LayerSolution(
            kept=torch.from_numpy(np.array(self.array(f"solve.{layer}", "kept.npy"))),
            weight=torch.from_numpy(np.array(self.array(f"solve.{layer}", "weight.npy"))),
        )

    def pruned_source(self) -> PrunedSource:
        """The pruned model's tensors, cut from the dense ones and the finished solves."""
        return PrunedSource(self.reader, self.adapter, self.solution)

    def widths(self) -> list[int]:
        """Channels kept in each layer, once allocated."""
        widths: list[int] = self.workspace.values("allocate")["widths"]
        return widths
