"""The sizes of a job while it runs: for each the job of this size, over one workspace.

A job that looks for its sparsity has a size for each try, and the result's, which is labelled "".
Their sparsities are known once the units that choose them are finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from strucprune_core.plan.graph import Unit, plain_name
from strucprune_core.plan.search import number_of_search, searched
from strucprune_core.plan.sizes import joined, named
from strucprune_core.run.artifacts import Evaluate, File, Search, Tasks
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Workspace
from strucprune_core.spec import QUANTISED_EXPORTS, JobSpec


@dataclass(frozen=True)
class Sizes:
    """A job with all its sizes.

    Attributes:
        spec: What was asked for.
        jobs: The job of each size by its label; one alone is labelled "". With sparsities that are
            yet to be found, see `of`.
        workspace: Finished units of all sizes.
        fingerprint: Of the specification, the model's files and the texts.
    """

    spec: JobSpec
    jobs: Mapping[str, Job]
    workspace: Workspace
    fingerprint: str

    @property
    def first(self) -> Job:
        """The job of the size that was named first; it does what all sizes share."""
        return self._found(next(iter(self.jobs)))

    @property
    def several(self) -> bool:
        """Whether there is more than one size, or might have been."""
        return "" not in self.jobs

    @cached_property
    def graph(self) -> list[Unit]:
        """All units, in order."""
        if self.spec.tries:
            return searched(self.jobs[""].graph, self.spec.tries)
        return joined({size: job.graph for size, job in self.jobs.items()})

    def of(self, unit: Unit) -> tuple[Job, Unit]:
        """The job that does a unit, and the unit as this job knows it."""
        size = unit.size if unit.size in self.jobs else next(iter(self.jobs))
        return self._found(size), self._plain.get((unit.size, plain_name(unit.name)), unit)

    def _found(self, size: str) -> Job:
        """The job of a size, with the sparsity that was found for it, if that is so."""
        job = self.jobs[size]
        if not self.spec.tries:
            return job
        search = Search(number_of_search(size, self.spec.tries))
        if self.workspace.manifest(search.unit) is None:
            return job
        sparsity = job.units.values(search).sparsity
        known = self._with_sparsity.get(size)
        if known is None or known.spec.pruning.sparsity != sparsity:
            known = self._with_sparsity[size] = replace(job, spec=job.spec.at(sparsity))
        return known

    @cached_property
    def _with_sparsity(self) -> dict[str, Job]:
        return {}

    @cached_property
    def _plain(self) -> dict[tuple[str, str], Unit]:
        units = {(size, unit.name): unit for size, job in self.jobs.items() for unit in job.graph}
        shared = {("", unit.name): unit for unit in self.first.graph}
        return {**shared, **units}

    @cached_property
    def predicted_seconds(self) -> dict[str, float]:
        """What each unit will take on this device, by name: see `plan.unit_seconds`."""
        seconds = {unit.name: 0.0 for unit in self.graph}
        for size, job in self.jobs.items():
            of_size = job.predicted_seconds
            seconds |= {named(name, size): each for name, each in of_size.items()}
            seconds = {**of_size, **seconds}
        return seconds

    def document(self, name: str) -> File:
        """A document on the whole job: report.json, report.html or README.md."""
        return File(self.graph[-1].name, name)

    @cached_property
    def accepted(self) -> dict[str, Job]:
        """The sizes that are published, once they are all judged."""
        return {size: job for size, job in self.jobs.items() if rejection(job) is None}


def rejection(job: Job) -> str | None:
    """Why a size of several is not published; None if it is."""
    if job.spec.evaluation is None:
        return None
    measured = [each for each in job.spec.pruning.exports if each in QUANTISED_EXPORTS]
    judged = [Evaluate("pruned"), *(Evaluate(each) for each in measured)]
    reasons = [job.units.values(each).rejected for each in judged]
    if job.spec.judges_by_tasks:
        reasons.append(job.units.values(Tasks("pruned")).rejected)
    return next((reason for reason in reasons if reason is not None), None)
