"""What every step of a job is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.checkpoint.bundle import bundle_names, load_from_bundle, map_from_bundle
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TORCH_DTYPES, TensorReader
from strucprune_core.checkpoint.writer import PlannedTensor, Shard, plan_shards
from strucprune_core.export.block_configs import padded
from strucprune_core.method.gram import SiteStatistics
from strucprune_core.method.layer.ridge import default_damping
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, Room
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.streaming import ModelStream, WeightSource, open_stream
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.graph import Unit, build_graph, distill_units
from strucprune_core.plan.pieces import Plan
from strucprune_core.plan.sites import (
    PlannedSite,
    energy_of,
    holdout_sequences,
    plan_sites,
    probe_shape,
    pruned_config,
)
from strucprune_core.run.workspace import Workspace
from strucprune_core.scratch.mapped_matrix import HostMatrix, ScratchMatrices
from strucprune_core.spec import Energy, JobSpec
from strucprune_core.storage.store import Store

# Shards are planned on the dense sizes, so that their number is known before any width is.
MAX_SHARD_BYTES = 1 << 30
SOLUTION = "solution.safetensors"
DISTILLED = "distilled.{}.safetensors"
OTHERS = "others."  # Prefix of trained tensors that belong to no site.


def load_solution(file: Path, site: Site) -> SiteSolution:
    """A site's part of a solution file, mapped into the host's memory."""

    def mapped(name: str) -> torch.Tensor:
        return torch.from_numpy(map_from_bundle(file, name))

    prefix = f"{site.name}.trained."
    return SiteSolution(
        kept=mapped(f"{site.name}.kept"),
        weight=mapped(f"{site.name}.weight"),
        trained={
            name.removeprefix(prefix): mapped(name)
            for name in bundle_names(file)
            if name.startswith(prefix)
        },
    )


def solution_tensors(site: Site, solution: SiteSolution) -> dict[str, torch.Tensor]:
    """A site's part of a solution file."""
    return {
        f"{site.name}.kept": solution.kept,
        f"{site.name}.weight": solution.weight,
        **{f"{site.name}.trained.{role}": weight for role, weight in solution.trained.items()},
    }


@dataclass(frozen=True)
class Job:
    """One pruning job while it runs.

    Attributes:
        spec: What was asked for.
        index: The dense checkpoint's layout.
        config: Its parsed config.
        reader: Its tensors by name.
        workspace: Finished units.
        scratch: Directory for temporary files.
        device: Where tensors visit.
        open_store: Opens the store of a URI.
        texts: Version of each text, by the field that names it.
        fingerprint: Of the specification, the model's files and the texts.
        tick: Called at safe points with (done, total) of the unit; may raise `errors.Stopped`.
        safe_point: The same without progress.
        plan: The pieces in which it runs.
    """

    spec: JobSpec
    index: CheckpointIndex
    config: ModelConfig
    reader: TensorReader
    workspace: Workspace
    scratch: Path
    device: torch.device
    open_store: Callable[[str], Store]
    texts: Mapping[str, str]
    fingerprint: str
    tick: Callable[[int, int], None]
    safe_point: Callable[[], None]
    plan: Plan

    @cached_property
    def dense(self) -> ModelStream:
        """The dense model."""
        return open_stream(self.config, self.reader, self.device, self.tiles)

    def stream(self, config: ModelConfig, source: WeightSource) -> ModelStream:
        """A model on the job's device, in pieces that fit."""
        return open_stream(config, source, self.device, self.tiles, like=self.dense)

    @property
    def tiles(self) -> Tiles:
        """The pieces in which text runs through a model."""
        return self.plan.tiles

    @property
    def panels(self) -> Panels:
        """The pieces in which matrices are solved."""
        return self.plan.panels

    @cached_property
    def room(self) -> Room:
        """Where matrices that are solved lie."""
        scratch = ScratchMatrices(self.scratch, self.device)
        return Room(self.device, self.panels, scratch, self.safe_point)

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
            shards=self._layers_in(self.dense_shards),
            energy=self.energy,
            recover=self.spec.pruning.recover is not None,
            distill_steps=self.distill_steps,
            rounds=self.spec.pruning.rounds,
            evaluate=self.spec.evaluation is not None,
            exports=self.spec.pruning.exports,
            export_shards=self._layers_in(self.padded_shards) if self.exports_blocks else (),
        )

    def _layers_in(self, shards: list[Shard]) -> list[list[int]]:
        """Of each file, the layers whose solutions are needed to write it."""
        solved = {
            tensor_name(self.config, layer, part.role): layer
            for layer, site in self._places
            for part in (site.output, *site.coupled)
        }
        if self.distill_steps:
            for layer in range(self.config.layers):
                for role in self.distilled_roles(layer):
                    solved[tensor_name(self.config, layer, role)] = layer
        names = [[tensor.name for tensor in shard.tensors] for shard in shards]
        return [sorted({solved[name] for name in each if name in solved}) for each in names]

    @property
    def energy(self) -> Energy:
        """Where layers' energies come from."""
        return energy_of(self.spec.pruning)

    @property
    def distill_steps(self) -> int:
        """Steps that the whole model is trained for; 0 if it is not."""
        distill = self.spec.pruning.distill
        return 0 if distill is None else distill.steps

    @cached_property
    def holdout_sequences(self) -> int:
        """Calibration sequences kept out of the statistics: the last ones."""
        return holdout_sequences(self.spec.calibration.samples)

    @cached_property
    def train_sequences(self) -> int:
        """Calibration sequences that the statistics are computed on: the first ones."""
        return self.spec.calibration.samples - self.holdout_sequences

    @property
    def probe_shape(self) -> tuple[int, int]:
        """(sequences, tokens) of the held-out text that energies are probed on."""
        return probe_shape(self.spec.calibration)

    def statistics(self, layer: int, site: Site) -> SiteStatistics:
        """What is known of a site beside its Gram matrix, once its layer is captured."""
        return SiteStatistics(**self.workspace.values(f"capture.{layer}")["sites"][site.name])

    def damping(self, layer: int, site: Site) -> float:
        """Ridge of a site's reconstruction, relative to its Gram's mean diagonal."""
        return self.spec.pruning.damping or default_damping(self.statistics(layer, site).tokens)

    @cached_property
    def dense_shards(self) -> list[Shard]:
        """Which tensors share an output file."""
        names = expected_tensors(self.config)
        infos = [self.index.tensors[name] for name in names]
        planned = [PlannedTensor(info.name, info.dtype, info.shape) for info in infos]
        return plan_shards(planned, MAX_SHARD_BYTES)

    @property
    def exports_blocks(self) -> bool:
        """Whether there is an export `block_configs`."""
        return "block_configs" in self.spec.pruning.exports

    @cached_property
    def padded_shards(self) -> list[Shard]:
        """Which tensors share a file of the export `block_configs`, by dense sizes filled up."""
        shapes = expected_tensors(padded(self.config))
        infos = [self.index.tensors[name] for name in shapes]
        planned = [PlannedTensor(info.name, info.dtype, shapes[info.name]) for info in infos]
        return plan_shards(planned, MAX_SHARD_BYTES)

    def stored_dtype(self, name: str) -> str:
        """Safetensors dtype of a tensor, the same before and after pruning."""
        return self.index.tensors[name].dtype

    def array(self, unit: str, name: str) -> NDArray[Any]:
        """A finished unit's array, memory-mapped and read-only."""
        array: NDArray[Any] = np.load(self.workspace.file(unit, name), mmap_mode="r")
        return array

    def tensor(self, unit: str, file: str, name: str) -> torch.Tensor:
        """One tensor of a finished unit's safetensors file, on the device."""
        return load_from_bundle(self.workspace.file(unit, file), name, self.device)

    def matrix(self, unit: str, file: str, name: str) -> Matrix:
        """The same, (rows x columns) float32: on the device if it fits, else mapped to memory."""
        mapped = map_from_bundle(self.workspace.file(unit, file), name)
        if self.panels.fits(mapped.shape[1]):
            return DeviceMatrix(self.tensor(unit, file, name))
        return HostMatrix(mapped, self.device)

    @cached_property
    def planned(self) -> list[PlannedSite]:
        """Every site that is pruned, in order."""
        return plan_sites(self.config, self.spec.pruning)

    def sites(self, layer: int) -> list[Site]:
        """The sites of a layer that are pruned."""
        return [place.site for place in self.planned if place.layer == layer]

    @property
    def widths(self) -> list[int]:
        """Structures kept at each planned site, once allocated."""
        widths: list[int] = self.workspace.values("allocate")["widths"]
        return widths

    def width(self, layer: int, site: Site) -> int:
        """Structures kept at one site, once allocated."""
        places = [(place.layer, place.site.name) for place in self.planned]
        return self.widths[places.index((layer, site.name))]

    @property
    def pruned_config(self) -> ModelConfig:
        """The pruned model's shape, once allocated."""
        return pruned_config(self.config, self.spec.pruning, self.planned, self.widths)

    def solution(self, layer: int, site: Site) -> SiteSolution:
        """What solving a site gave, on the host."""
        if self.spec.pruning.distill is None:
            return self.repaired(layer, site)
        return load_solution(self._distilled(layer), site)

    def repaired(self, layer: int, site: Site) -> SiteSolution:
        """The same before the model was trained as a whole."""
        last = "solve" if self.spec.pruning.recover is None else "recover"
        return load_solution(self.workspace.file(f"{last}.{layer}", SOLUTION), site)

    def pruned_source(self) -> PrunedSource:
        """The pruned model's tensors, cut from the dense ones and the finished solves."""
        if self.spec.pruning.distill is None:
            return self.repaired_source()
        return PrunedSource(self.reader, self.config, self._places, self.solution, self._others())

    def repaired_source(self) -> PrunedSource:
        """The same before the model was trained as a whole."""
        return PrunedSource(self.reader, self.config, self._places, self.repaired)

    def distilled_roles(self, layer: int) -> list[str]:
        """Matrices of a layer that are trained with the whole model: all but routers."""
        router = f"{self.config.blocks[layer].names.router}.weight"
        shapes = layer_tensors(self.config, layer)
        return [role for role, shape in shapes.items() if len(shape) == 2 and role != router]

    @property
    def _places(self) -> list[tuple[int, Site]]:
        return [(place.layer, place.site) for place in self.planned]

    def _distilled(self, layer: int) -> Path:
        last = len(distill_units(self.distill_steps)) - 1
        return self.workspace.file(f"distill.{last}", DISTILLED.format(layer))

    def _others(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Trained tensors outside the sites, by name."""

        def load(layer: int, role: str) -> torch.Tensor:
            trained = torch.from_numpy(map_from_bundle(self._distilled(layer), f"{OTHERS}{role}"))
            return trained.to(
                TORCH_DTYPES[self.stored_dtype(tensor_name(self.config, layer, role))]
            )

        found: dict[str, Callable[[], torch.Tensor]] = {}
        for layer in range(self.config.layers):
            parts = (part for site in self.sites(layer) for part in (site.output, *site.coupled))
            for role in set(self.distilled_roles(layer)) - {part.role for part in parts}:
                found[tensor_name(self.config, layer, role)] = partial(load, layer, role)
        return found
