"""The pruned model, as finished units describe it: its widths, its shape, its tensors on demand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

from torch import Tensor

from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import without_experts
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.streaming import ModelStream, WeightSource
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import tensor_name
from strucprune_core.plan.graph import final_solution, repaired_solution
from strucprune_core.plan.sites import pruned_config, with_drafting
from strucprune_core.run.artifacts import Allocate, File, Select
from strucprune_core.run.context import Job
from strucprune_core.run.solutions import distilled_roles, load_other, load_solution


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
        if job.removes_experts:
            return without_experts(dense, self.experts)
        return pruned_config(dense, job.spec.pruning, job.planned, [*self.widths])

    @cached_property
    def experts(self) -> list[list[int]]:
        """Experts kept in each layer, of a job that removes some."""
        return self._job.units.values(Select()).kept

    def stream(self) -> ModelStream:
        """The model in memory, as it is published."""
        return self._job.stream(self.config, self.source())

    def source(self) -> WeightSource:
        """Its tensors, as they are published."""
        if self._job.removes_experts:
            return ExpertSource(self._job.reader, self._job.config, self.experts)
        if not self._job.distill_steps:
            return self.repaired_source()
        others = self._other_tensors()
        return PrunedSource(self._job.reader, self._job.config, self._sites, self.solution, others)

    def repaired_source(self) -> PrunedSource:
        """Its tensors before it is trained as a whole."""
        return PrunedSource(self._job.reader, self._job.config, self._sites, self.repaired)

    def solution(self, layer: int, site: Site) -> SiteSolution:
        """What is left of a site, as it is published, on the host."""
        return load_solution(self._job.units.path(self._final(layer)), site)

    def repaired(self, layer: int, site: Site) -> SiteSolution:
        """The same before the model is trained as a whole."""
        file = repaired_solution(layer, recover=self._job.recovers)
        return load_solution(self._job.units.path(file), site)

    @property
    def _sites(self) -> list[tuple[int, Site]]:
        return [(place.layer, place.site) for place in self._job.planned]

    def _final(self, layer: int) -> File:
        job = self._job
        return final_solution(layer, recover=job.recovers, distill_steps=job.distill_steps)

    def _other_tensors(self) -> dict[str, Callable[[], Tensor]]:
        """Trained tensors outside the sites, by name."""
        config = self._job.config
        tensors: dict[str, Callable[[], Tensor]] = {}
        for layer in range(config.layers):
            sites = self._job.sites(layer)
            of_sites = {part.role for site in sites for part in (site.output, *site.coupled)}
            for role in distilled_roles(config, layer):
                if role not in of_sites:
                    tensors[tensor_name(config, layer, role)] = partial(self._other, layer, role)
        return tensors

    def _other(self, layer: int, role: str) -> Tensor:
        trained = load_other(self._job.units.path(self._final(layer)), role)
        stored = self._job.stored_dtype(tensor_name(self._job.config, layer, role))
        return trained.to(TORCH_DTYPES[stored])
