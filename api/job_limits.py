"""Limits on single jobs of a tenant: size, duration, priority. A job over one is answered with 422.

`admission` limits how much a tenant may have and do at once.
"""

from __future__ import annotations

from typing import get_args

from api.jobs.limits import TenantLimits
from api.jobs.record import Priority
from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import Examination
from strucprune_core.plan.partial import PartialJob
from strucprune_core.spec import MIN_SAMPLES, JobSpec

# Names and values of a job's labels together.
MAX_LABEL_BYTES = 4096


class OverLimit(InvalidSpec):
    """The job exceeds a limit of its tenant."""

    code = "over_limit"


def with_deadline(spec: JobSpec, limits: TenantLimits) -> JobSpec:
    """The job, with the longest allowed deadline if it names none."""
    if spec.runtime.deadline_seconds is not None or limits.deadline_seconds is None:
        return spec
    longest = {"deadline_seconds": limits.deadline_seconds}
    return spec.model_copy(update={"runtime": spec.runtime.model_copy(update=longest)})


def with_gpu_memory(spec: JobSpec, usual_bytes: int | None) -> JobSpec:
    """The job, with the service's usual limit of device memory if it asks for a GPU and names none.

    Pieces follow from the specification, so that every worker computes the same bytes.
    """
    if not spec.runtime.on_gpu or spec.runtime.device_memory_bytes is not None:
        return spec
    runtime = spec.runtime.model_copy(update={"device_memory_bytes": usual_bytes})
    return spec.model_copy(update={"runtime": runtime})


def priority_issues(spec: JobSpec | PartialJob, limits: TenantLimits) -> list[OverLimit]:
    """What is wrong with the job's priority."""
    rising = get_args(Priority)[::-1]
    if rising.index(spec.runtime.priority) <= rising.index(limits.max_priority):
        return []
    return [
        OverLimit(
            f"your organisation's jobs may not have the priority {spec.runtime.priority}",
            field="runtime.priority",
            remedy=f"Ask for {limits.max_priority} or less.",
            mends=[Mend("runtime.priority", limits.max_priority)],
        )
    ]


def device_issues(spec: JobSpec | PartialJob) -> list[InvalidSpec]:
    """What is wrong with the job's device, of which a service's workers choose the number."""
    if ":" not in spec.runtime.device:
        return []
    return [
        InvalidSpec(
            f"a service's job cannot ask for {spec.runtime.device}: each worker has its own GPU",
            field="runtime.device",
            remedy="Ask for cuda, or for auto.",
            mends=[Mend("runtime.device", "cuda")],
        )
    ]


def label_issues(spec: JobSpec | PartialJob) -> list[InvalidSpec]:
    """What is wrong with the job's labels, which Redis keeps in memory as long as the job."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in spec.labels.items())
    if size <= MAX_LABEL_BYTES:
        return []
    return [
        InvalidSpec(
            f"the names and values of all labels take {size:,} bytes, over the limit of "
            f"{MAX_LABEL_BYTES:,}",
            field="labels",
            remedy="Use fewer or shorter labels.",
        )
    ]


def deadline_issues(spec: JobSpec | PartialJob, limits: TenantLimits) -> list[OverLimit]:
    """What is wrong with the job's deadline."""
    asked, most = spec.runtime.deadline_seconds, limits.deadline_seconds
    if asked is None or most is None or asked <= most:
        return []
    return [
        OverLimit(
            f"a deadline of {asked:,} s is more than your organisation's jobs may have",
            field="runtime.deadline_seconds",
            remedy=f"Set at most {most} seconds, or leave it out to get that.",
            mends=[Mend("runtime.deadline_seconds", most)],
        )
    ]


def size_issues(spec: JobSpec, found: Examination, limits: TenantLimits) -> list[OverLimit]:
    """What is too large about an examined job."""
    if found.model is None:
        return []
    issues = model_issues(found.model, limits)
    if not found.issues:  # The estimate needs a job without other issues.
        issues += _scratch_issues(spec, found.model, limits.scratch_bytes)
    return issues


def model_issues(model: ModelFacts, limits: TenantLimits) -> list[OverLimit]:
    """What is too large about a model."""
    most = limits.model_bytes
    size = model.index.total_bytes
    if most is None or size <= most:
        return []
    return [
        OverLimit(
            f"the model has {size:,} bytes of weights, over your organisation's limit of {most:,}",
            field="model.uri",
            remedy="Use a smaller model, or ask the service's operator for a higher limit.",
        )
    ]


def _scratch_issues(spec: JobSpec, model: ModelFacts, most: int | None) -> list[OverLimit]:
    if most is None:
        return []
    needed = _scratch_bytes(spec, model, spec.calibration.samples)
    if needed <= most:
        return []
    message = (
        f"the job needs {needed:,} bytes of scratch, over your organisation's limit of {most:,}"
    )
    samples = _samples_that_fit(spec, model, needed, most)
    if samples is None:
        return [
            OverLimit(
                message,
                field="model.uri",
                remedy="Use a smaller model, leave out exports and distillation, or ask the "
                "service's operator for a higher limit.",
            )
        ]
    return [
        OverLimit(
            message,
            field="calibration.samples",
            remedy=f"Draw at most {samples:,} samples.",
            mends=[Mend("calibration.samples", samples)],
        )
    ]


def _samples_that_fit(spec: JobSpec, model: ModelFacts, needed: int, most: int) -> int | None:
    """How many samples the limit allows; None if even the fewest need too much."""
    least = _scratch_bytes(spec, model, MIN_SAMPLES)
    if least > most:
        return None
    # The estimate is linear in the number of samples.
    each = (needed - least) // (spec.calibration.samples - MIN_SAMPLES)
    return MIN_SAMPLES + (most - least) // each


def _scratch_bytes(spec: JobSpec, model: ModelFacts, samples: int) -> int:
    calibration = spec.calibration.model_copy(update={"samples": samples})
    return estimate_job(spec.model_copy(update={"calibration": calibration}), model).workspace_bytes
