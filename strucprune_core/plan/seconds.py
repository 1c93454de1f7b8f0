"""How long a job takes on a device whose rates were measured: a range, before it runs. No torch.

One worker, on a machine that does nothing else. Times of units are in `plan.unit_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.precision import precision_of
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.search import try_units
from strucprune_core.plan.sizes import own_units
from strucprune_core.plan.unit_seconds import (
    PUBLISHED_BYTES_PER_PARAMETER,
    StoredModel,
    unit_seconds,
)
from strucprune_core.plan.work import computing_units
from strucprune_core.run.artifacts import Tasks
from strucprune_core.run.progress import Phase
from strucprune_core.spec import JobSpec

# A process starts, loads its libraries, and reads headers.
START_SECONDS = 5.0
# What jobs took lay between these multiples of what was predicted: docs/estimates.md has the cases.
LEAST, MOST = 0.7, 1.5
# No job has been measured on a GPU yet.
LEAST_ON_GPU, MOST_ON_GPU = 0.5, 4.0
# How many documents a task has and how long they are is a guess (`plan.task_memory`).
LEAST_OF_TASKS, MOST_OF_TASKS = 0.05, 3.0


class TimeEstimate(BaseModel):
    """About how long a job takes on one class of device, with one worker that has it to itself."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    device: str = Field(description="The processor's or GPU's name.")
    threads: int = Field(description="Of its processor.")
    workers: int = Field(default=1, description="How many workers the time is for.")
    seconds: float = Field(description="What is most likely.")
    least_seconds: float = Field(description="A job seldom takes less ...")
    most_seconds: float = Field(description="... or more, unless the machine does other work too.")
    phases: dict[Phase, float] = Field(description="The most likely seconds of each phase.")


def runs_on(spec: JobSpec, rates: DeviceRates) -> bool:
    """Whether a job computes on the device that these rates are of, where there is one."""
    if spec.runtime.precision == "tf32" and rates.kind == "cpu":
        return False
    return spec.runtime.device == "auto" or spec.runtime.on_gpu == (rates.kind == "cuda")


def estimated_seconds(spec: JobSpec, facts: ModelFacts, rates: DeviceRates) -> TimeEstimate:
    """The time of a job on an inspected model.

    Args:
        spec: The job.
        facts: Its model.
        rates: Of the device.
    """
    phases, of_tasks = dict.fromkeys(Phase, 0.0), 0.0
    for unit, seconds, times in _units(spec, facts, rates):
        phases[unit.phase] += times * seconds
        of_tasks += times * seconds if unit.kind == Tasks.kind else 0.0
    phases[Phase.INSPECTING] += START_SECONDS
    phases[Phase.COMMITTING] += len(spec.by_size()) * publishing_seconds(spec, facts, rates)
    total = sum(phases.values())
    on_gpu = rates.kind == "cuda"
    least, most = (LEAST_ON_GPU, MOST_ON_GPU) if on_gpu else (LEAST, MOST)
    return TimeEstimate(
        device=rates.device,
        threads=rates.threads,
        seconds=round(total, 1),
        least_seconds=round(least * (total - of_tasks) + LEAST_OF_TASKS * of_tasks, 1),
        most_seconds=round(most * (total - of_tasks) + MOST_OF_TASKS * of_tasks, 1),
        phases={phase: round(each, 1) for phase, each in phases.items() if each},
    )


def publishing_seconds(spec: JobSpec, facts: ModelFacts, rates: DeviceRates) -> float:
    """Seconds of copying a result of one size to the output, which is no unit."""
    left = facts.parameters * (1.0 - (spec.pruning.sparsity or 0.0))
    files = 1 + len(spec.pruning.exports)
    return files * left * PUBLISHED_BYTES_PER_PARAMETER / rates.memory_bytes_per_second


def _units(
    spec: JobSpec, facts: ModelFacts, rates: DeviceRates
) -> Iterator[tuple[Unit, float, int]]:
    """Units, what each takes, and how often it is done."""
    for number, alone in enumerate(spec.by_size().values()):
        units = computing_units(alone, facts.config)
        own = own_units(units) if number else frozenset(unit.name for unit in units)
        seconds = _seconds(units, alone, facts, rates)
        yield from ((unit, seconds[unit.name], 1) for unit in units if unit.name in own)
    if spec.tries:
        units = computing_units(spec, facts.config)
        seconds = _seconds(units, spec, facts, rates)
        yield from ((unit, seconds[unit.name], spec.tries) for unit in try_units(units))


def _seconds(
    units: list[Unit], spec: JobSpec, facts: ModelFacts, rates: DeviceRates
) -> Mapping[str, float]:
    plan = plan_job(spec, facts.config)
    stored = StoredModel.of(facts)
    precision = precision_of(spec, facts, rates.kind)
    return unit_seconds(units, spec, facts.config, plan, rates, stored, precision)
