"""The pruned model, as finished units describe it: its widths, its shape, its tensors on demand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

from torch import Tensor

from strucprune_core.checkpoint.bundle import bundle_names, load_stored
from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.models.blocks import Block, compacted, names_in_files, without_blocks
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import without_experts
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.renamed_source import RenamedSource
from strucprune_core.models.streaming import ModelStream, WeightSource
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import down_role, tensor_name
from strucprune_core.plan.blocks import refitted_layers
from strucprune_core.plan.graph import final_solution, repaired_solution
from strucprune_core.plan.sites import pruned_config, with_drafting
from strucprune_core.run.artifacts import Allocate, File, Refit, Repair, Select, Solve
from strucprune_core.run.context import Job
from strucprune_core.run.solutions import (
    distilled_roles,
    load_other,
    load_solution,
    recovered_roles,
)


class PrunedModel:
    """Reads what is needed when it is asked for: widths once allocated, weights once solved."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Structures kept at each planned site."""
        return self._job.units.values(Allocate()).widths

    def width(self, layer: int, site: Site) -> int:
        """Structures kept at one site."""
        return self._widths_by_site[layer, site.name]

    @cached_property
    def _widths_by_site(self) -> dict[tuple[int, str], int]:
        places = [(place.layer, place.site.name) for place in self._job.planned]
        return dict(zip(places, self.widths, strict=True))

    @cached_property
    def config(self) -> ModelConfig:
        """The pruned model's shape."""
        job = self._job
        dense = with_drafting(job.config, job.spec.pruning)
        equally = job.spec.pruning.keeps_equal_experts
        if job.removes_experts_alone:
            return without_experts(dense, self.experts, equally=equally)
        pruned = pruned_config(dense, job.spec.pruning, job.planned, [*self.widths])
        if job.removes_experts:
            return without_experts(pruned, self.experts, equally=equally)
        return without_blocks(pruned, self.removed_blocks)

    @cached_property
    def removed_blocks(self) -> list[Block]:
        """Blocks that go whole, in the order of their removal."""
        return [each.block for each in self._job.units.values(Allocate()).blocks]

    @property
    def in_files(self) -> ModelConfig:
        """Its shape as its files hold it: without removed layers."""
        return compacted(self.config)

    def sites(self, layer: int) -> list[Site]:
        """The sites of a layer of which something is left."""
        return [site for site in self._job.sites(layer) if self.width(layer, site)]

    @cached_property
    def experts(self) -> list[list[int]]:
        """Experts kept in each layer, of a job that removes some."""
        if self._job.removes_experts_alone:
            return self._job.units.values(Select()).kept
        return self._job.units.values(Allocate()).experts

    def stream(self) -> ModelStream:
        """The model in memory, as it is published."""
        return self._job.stream(self.config, self.source())

    def unrepaired(self) -> ModelStream:
        """The model without some experts, before those that stay are repaired."""
        source = ExpertSource(self._job.reader, self._job.config, self.experts)
        return self._job.stream(self.config, source)

    def _repaired_experts(self, name: str) -> Tensor | None:
        """A tensor that was changed for the experts that went; None for any other."""
        layer = self._job.layer_of_expert(name)
        if layer is None or not self._job.repairs_experts:
            return None
        file = self._job.units.path(Repair(layer).solution)
        return load_stored(file, name) if name in bundle_names(file) else None

    def source_of_files(self) -> WeightSource:
        """Its tensors, as they are published, under their names in the files."""
        if self.new_names is None:
            return self.source()
        return RenamedSource(self.source(), self._dense_names)

    @cached_property
    def new_names(self) -> dict[str, str] | None:
        """Names in the files, by dense ones; None if all keep theirs."""
        return names_in_files(self.config) if self._job.spec.pruning.removes_blocks else None

    @cached_property
    def _dense_names(self) -> dict[str, str]:
        return {new: old for old, new in (self.new_names or {}).items()}

    def stored_dtype(self, name: str) -> str:
        """Safetensors dtype of a tensor, by its name in the files."""
        return self._job.stored_dtype(self._dense_names.get(name, name))

    def source(self) -> WeightSource:
        """Its tensors, as they are published."""
        if self._job.removes_experts:
            alone = self._job.removes_experts_alone
            others: WeightSource = self._job.reader if alone else self.repaired_source()
            return ExpertSource(others, self._job.config, self.experts, self._repaired_experts)
        if not self._job.distill_steps:
            return self.repaired_source()
        trained = self._distilled_tensors()
        return PrunedSource(self._job.reader, self._job.config, self._sites, self.solution, trained)

    def repaired_source(self) -> PrunedSource:
        """Its tensors before it is trained as a whole."""
        others = self._refitted_tensors() if self._job.refits else self._recovered_tensors()
        return PrunedSource(self._job.reader, self._job.config, self._sites, self.repaired, others)

    def solved_source(self) -> PrunedSource:
        """Its tensors before matrices behind removed blocks are solved again."""
        return PrunedSource(self._job.reader, self._job.config, self._sites, self.solved)

    def solved(self, layer: int, site: Site) -> SiteSolution:
        """What is left of a site as it was solved first, on the host."""
        return load_solution(self._job.units.path(Solve(layer).solution), site)

    def solution(self, layer: int, site: Site) -> SiteSolution:
        """What is left of a site, as it is published, on the host."""
        return load_solution(self._job.units.path(self._final(layer)), site)

    def repaired(self, layer: int, site: Site) -> SiteSolution:
        """The same before the model is trained as a whole."""
        return load_solution(self._job.units.path(self._repaired(layer)), site)

    def _repaired(self, layer: int) -> File:
        job = self._job
        return repaired_solution(layer, recover=job.recovers, refit=job.refits)

    @property
    def _sites(self) -> list[tuple[int, Site]]:
        return [
            (layer, site) for layer in range(self._job.config.layers) for site in self.sites(layer)
        ]

    def _final(self, layer: int) -> File:
        job = self._job
        return final_solution(
            layer, recover=job.recovers, distill_steps=job.distill_steps, refit=job.refits
        )

    def _refitted_tensors(self) -> dict[str, Callable[[], Tensor]]:
        """Matrices behind removed blocks that are solved again, where no site holds them."""
        tensors: dict[str, Callable[[], Tensor]] = {}
        for layer in refitted_layers(self._job.config, self.config):
            role = down_role(self.config, layer)
            of_site = any(site.output.role == role for site in self.sites(layer))
            if not of_site and self._job.units.values(Refit(layer)).taken:
                name = tensor_name(self.config, layer, role)
                tensors[name] = partial(self._other, self._repaired(layer), layer, role)
        return tensors

    def _recovered_tensors(self) -> dict[str, Callable[[], Tensor]]:
        """FFN matrices that are trained layer by layer, where no site holds them."""
        if not self._job.recovers:
            return {}
        return self._outside_sites(recovered_roles, self._repaired)

    def _distilled_tensors(self) -> dict[str, Callable[[], Tensor]]:
        """Trained tensors outside the sites, by name."""
        return self._outside_sites(distilled_roles, self._final)

    def _outside_sites(
        self, roles: Callable[[ModelConfig, int], list[str]], file: Callable[[int], File]
    ) -> dict[str, Callable[[], Tensor]]:
        """Trained tensors that no site holds, by name; `file` has those of a layer."""
        config = self.config
        tensors: dict[str, Callable[[], Tensor]] = {}
        for layer in range(config.layers):
            sites = self.sites(layer)
            of_sites = {part.role for site in sites for part in (site.output, *site.coupled)}
            for role in roles(config, layer):
                if role not in of_sites:
                    tensors[tensor_name(config, layer, role)] = partial(
                        self._other, file(layer), layer, role
                    )
        return tensors

    def _other(self, file: File, layer: int, role: str) -> Tensor:
        trained = load_other(self._job.units.path(file), role)
        stored = self._job.stored_dtype(tensor_name(self._job.config, layer, role))
        return trained.to(TORCH_DTYPES[stored])
