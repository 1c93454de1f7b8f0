"""What every step of a job is given: the specification, the dense model, the stores and the plan.

What finished units say of the result is in `pruned_model`, of a site in `measured_site`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.method.linalg.matrices import Room
from strucprune_core.method.linalg.panels import WIDE_COLUMNS, Panels
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import expert_tensors, first_experts, without_experts
from strucprune_core.models.precision import Precision
from strucprune_core.models.streaming import ModelStream, WeightSource, open_stream
from strucprune_core.models.structures import Site
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.blocks import most_steps, refits
from strucprune_core.plan.chunks import chunks
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import Unit, build_experts_graph, build_graph
from strucprune_core.plan.pieces import Plan
from strucprune_core.plan.precision import matrices_dtype
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.sites import (
    PlannedSite,
    energy_of,
    kept_experts,
    plan_sites,
    with_drafting,
)
from strucprune_core.plan.unit_seconds import StoredModel, unit_seconds
from strucprune_core.report.document import Environment
from strucprune_core.run.environment import environment_of
from strucprune_core.run.finished_units import FinishedUnits
from strucprune_core.run.following import Following
from strucprune_core.run.shards import ShardPlan
from strucprune_core.run.text_split import TextSplit
from strucprune_core.run.unit_files import UnitFiles
from strucprune_core.scratch.mapped_matrix import ScratchMatrices
from strucprune_core.spec import Energy, JobSpec
from strucprune_core.storage.store import Store


@dataclass(frozen=True)
class Job:
    """One pruning job while it runs; of several sizes the job of one.

    Attributes:
        spec: What was asked for.
        size: Its label among several sizes; "" if it is the only one.
        index: The dense checkpoint's layout.
        config: Its parsed config.
        reader: Its tensors by name.
        workspace: Finished units.
        scratch: Directory for temporary files.
        device: Where tensors visit.
        precision: What is computed there.
        solve_dtype: What curves and solves are computed in: float64, or float32 where a check
            allows it (`method.linalg.matrices.Room`).
        open_store: Opens the store of a URI.
        texts: Version of each text, by the field that names it.
        fingerprint: Of the specification, the model's files and the texts.
        tick: Called at safe points with (done, total) of the unit; may raise `errors.Stopped`.
        safe_point: The same without progress.
        plan: The pieces in which it runs.
        following: Waits for what units hand on while they run.
        rates: Of the device, by which times are predicted.
        task_downloads: Whether data of tasks may come from a hub.
        transfers: Counts what crosses between host and device.
    """

    spec: JobSpec
    size: str
    index: CheckpointIndex
    config: ModelConfig
    reader: TensorReader
    workspace: FinishedUnits
    scratch: Path
    device: torch.device
    open_store: Callable[[str], Store]
    texts: Mapping[str, str]
    fingerprint: str
    tick: Callable[[int, int], None]
    safe_point: Callable[[], None]
    plan: Plan
    following: Following
    rates: DeviceRates
    task_downloads: bool = True
    precision: Precision = "float32"
    solve_dtype: torch.dtype = torch.float64
    transfers: Transfers = field(default_factory=Transfers)

    @cached_property
    def units(self) -> UnitFiles:
        """What finished units have left."""
        return UnitFiles(self.workspace, self.device, self.panels, self.transfers)

    @cached_property
    def dense(self) -> ModelStream:
        """The dense model."""
        return open_stream(
            self.config,
            self.reader,
            self.device,
            self.tiles,
            dtype=self.dtype,
            transfers=self.transfers,
            stored_bytes=self.stored_bytes,
        )

    def stream(self, config: ModelConfig, source: WeightSource) -> ModelStream:
        """A model on the job's device, in pieces that fit and in the job's precision."""
        return open_stream(
            config,
            source,
            self.device,
            self.tiles,
            like=self.dense,
            dtype=self.dtype,
            transfers=self.transfers,
            stored_bytes=self.stored_bytes,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the operands of matrix products in layers."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def environment(self) -> Environment:
        """What rounds in this process."""
        return environment_of(self.device, self.precision, self.solve_dtype)

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
        scratch = ScratchMatrices(self.scratch, self.device, self.transfers)
        return Room(self.device, self.panels, scratch, self.safe_point, self.solve_dtype)

    def curve_room(self, columns: int) -> Room:
        """The same for a damage curve of so many columns."""
        wide = self.device.type == "cpu" and columns > WIDE_COLUMNS
        return replace(self.room, dtype=torch.float32) if wide else self.room

    @cached_property
    def split(self) -> TextSplit:
        """The calibration sequences by purpose."""
        return TextSplit.of(self.spec.calibration)

    @cached_property
    def chunks(self) -> list[range]:
        """The calibration sequences that a layer hands on at a time."""
        return chunks(self.spec.calibration, self.tiles)

    @cached_property
    def planned(self) -> list[PlannedSite]:
        """Every site that is pruned, in order."""
        return plan_sites(self.config, self.spec.pruning)

    def sites(self, layer: int) -> list[Site]:
        """The sites of a layer that are pruned."""
        return [place.site for place in self.planned if place.layer == layer]

    @property
    def energy(self) -> Energy:
        """Where layers' energies come from."""
        return energy_of(self.spec.pruning)

    @property
    def recovers(self) -> bool:
        """Whether solved layers are trained."""
        return self.spec.pruning.recover is not None

    @property
    def distill_steps(self) -> int:
        """Steps that the whole model is trained for; 0 if it is not."""
        distill = self.spec.pruning.distill
        return 0 if distill is None else distill.steps

    @cached_property
    def block_steps(self) -> int:
        """The most blocks that go whole."""
        pruning = self.spec.pruning
        return most_steps(self.config, pruning) if pruning.removes_blocks else 0

    @property
    def refits(self) -> bool:
        """Whether matrices behind removed blocks are solved again."""
        return refits(self.spec.pruning, self.config)

    @property
    def removes_experts(self) -> bool:
        """Whether whole experts are removed."""
        return self.spec.pruning.removes_experts

    @property
    def removes_experts_alone(self) -> bool:
        """Whether nothing else is."""
        return self.spec.pruning.removes_experts_alone

    @property
    def repairs_experts(self) -> bool:
        """Whether experts that stay are changed for those that went."""
        return self.removes_experts and self.spec.pruning.expert_repair

    def layer_of_expert(self, name: str) -> int | None:
        """The layer of a tensor that belongs to its experts or its router; None for any other."""
        return self._expert_layers.get(name)

    @cached_property
    def _expert_layers(self) -> dict[str, int]:
        return expert_tensors(self.config) if self.removes_experts else {}

    @cached_property
    def shards(self) -> ShardPlan:
        """The files of the result."""
        config = with_drafting(self.config, self.spec.pruning)
        if self.removes_experts_alone and self.spec.pruning.layout == "uniform":
            # How many experts stay is known; whichever they are, they get the first numbers.
            count = kept_experts(self.spec.pruning, config)
            kept = first_experts(config, [count] * config.layers)
            return ShardPlan(self.index, without_experts(config, kept), (), distill=False)
        return ShardPlan(
            self.index,
            config,
            self.planned,
            distill=self.distill_steps > 0,
            refit=self.refits,
            recover=self.recovers,
        )

    @cached_property
    def graph(self) -> list[Unit]:
        """The job's units, in order."""
        exports, shards = self.spec.pruning.exports, self.shards
        if self.removes_experts_alone:
            return build_experts_graph(
                layers=self.config.layers,
                shards=[
                    sorted({self._expert_layers[n] for n in names if n in self._expert_layers})
                    for names in ([t.name for t in shard.tensors] for shard in shards.checkpoint)
                ],
                energy=self.energy,
                repair=self.repairs_experts,
                evaluate=self.spec.evaluation is not None,
                samples=bool(self.spec.sampled_prompts),
                speed=self.spec.measures_speed,
                tasks=self.spec.judges_by_tasks,
            )
        return build_graph(
            layers=self.config.layers,
            shards=shards.layers_in(shards.checkpoint),
            energy=self.energy,
            recover=self.recovers,
            distill_steps=self.distill_steps,
            rounds=self.spec.pruning.rounds,
            evaluate=self.spec.evaluation is not None,
            samples=bool(self.spec.sampled_prompts),
            speed=self.spec.measures_speed,
            tasks=self.spec.judges_by_tasks,
            exports=exports,
            export_shards={each: shards.layers_in(shards.of_export(each)) for each in exports},
            blocks=self.block_steps,
            sites=bool(self.planned),
            refit=self.refits,
            experts=self.removes_experts,
            chunks=self.chunks,
        )

    @cached_property
    def predicted_seconds(self) -> dict[str, float]:
        """What each unit will take on this device, by name: see `plan.unit_seconds`."""
        return unit_seconds(
            self.graph,
            self.spec,
            self.config,
            self.plan,
            self.rates,
            StoredModel.of(ModelFacts(self.index, self.config)),
            self.precision,
        )

    @cached_property
    def stored_bytes(self) -> int:
        """Of a weight in the model's files, as most are stored."""
        return DTYPE_BYTES[matrices_dtype(ModelFacts(self.index, self.config))]

    def stored_dtype(self, name: str) -> str:
        """Safetensors dtype of a tensor, the same before and after pruning."""
        return self.index.tensors[name].dtype
