"""Checks what is known of a job that is not complete yet, as in a form. No torch.

Each place that the job names is checked by itself, as `plan.inspection` checks it in a whole job.
So a missing model is said although no text is chosen yet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from strucprune_core.errors import StrucPruneError, naming_field
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import (
    OpenStore,
    calibration_bytes,
    check_output_usable,
    check_places_apart,
    evaluation_bytes,
    read_adapted_model,
)
from strucprune_core.plan.tasks import check_tasks
from strucprune_core.spec import (
    MIN_SAMPLES,
    CalibrationSpec,
    EvaluationSpec,
    JobSpec,
    ModelSpec,
    OutputSpec,
    RuntimeSpec,
)

_T = TypeVar("_T")

# The least of each number, so that a text is not called too short for a number that is wrong.
_LEAST = {"samples": MIN_SAMPLES, "sequences": 1, "sequence_length": 8}
_LEAST_OF = {
    "calibration": {name: _LEAST[name] for name in ("samples", "sequence_length")},
    "evaluation": {name: _LEAST[name] for name in ("sequences", "sequence_length")},
}
_SECTIONS = {
    "model.uri": "model",
    "output.uri_prefix": "output",
    "calibration.uri": "calibration",
    "evaluation.uri": "evaluation",
}


class PartialJob(BaseModel):
    """The sections of a job that name places; None: not given, or wrong by itself.

    Attributes:
        experts: Whether the job removes experts, by which a model is read in another way.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: ModelSpec | None = None
    output: OutputSpec | None = None
    calibration: CalibrationSpec | None = None
    evaluation: EvaluationSpec | None = None
    runtime: RuntimeSpec = RuntimeSpec()
    labels: dict[str, str] = {}
    experts: bool = False

    @classmethod
    def of(cls, job: JobSpec) -> Self:
        """What a whole job names."""
        sections = {name: getattr(job, name) for name in cls.model_fields if name != "experts"}
        return cls(**sections, experts=job.pruning.removes_experts)

    @classmethod
    def salvaged(cls, body: Mapping[str, Any]) -> Self:
        """The parts of a job's JSON that are valid by themselves."""
        pruning = body.get("pruning")
        structures = pruning.get("structures") if isinstance(pruning, dict) else None
        experts = isinstance(structures, list) and "experts" in structures
        sections = {name: body[name] for name in cls.model_fields if name in body}
        parts = {**copy.deepcopy(sections), "experts": experts}
        while True:
            try:
                return cls.model_validate(parts)
            except ValidationError as error:
                for each in error.errors():
                    _drop(parts, each["loc"])

    def without(self, field: str) -> Self:
        """The rest of it if what stands in a field cannot be used."""
        if field in _SECTIONS:
            return self.model_copy(update={_SECTIONS[field]: None})
        section, _, name = field.partition(".")
        there = getattr(self, section, None)
        if there is None:
            return self
        alone = {name: None, "tasks": ()} if name == "task_files" else {name: None}
        return self.model_copy(update={section: there.model_copy(update=alone)})


def _drop(parts: dict[str, Any], path: tuple[int | str, ...]) -> None:
    """Take the value at fault out of the parts, or a section whose values do not go together."""
    section, *inner = path
    there = parts.get(str(section))
    name = inner[0] if inner else None
    if isinstance(there, dict) and name in there:
        if name in _LEAST and there[name] != _LEAST[str(name)]:
            there[name] = _LEAST[str(name)]
        else:
            del there[name]
        return
    uri = there.get("uri") if isinstance(there, dict) else None
    alone = {"uri": uri, **_LEAST_OF.get(str(section), {})}
    if inner or uri is None or section not in _LEAST_OF or there == alone:
        parts.pop(str(section), None)
    else:
        parts[str(section)] = alone


def examine_places(
    job: PartialJob, open_store: OpenStore, *, task_downloads: bool = True
) -> tuple[list[StrucPruneError], ModelFacts | None]:
    """Check the places that a job names, each by itself; with the model, if it is usable.

    Args:
        job: What is known of it.
        open_store: Opens the stores that it names.
        task_downloads: Whether data of tasks may come from a hub.
    """
    issues: list[StrucPruneError] = []

    def collect(field: str, check: Callable[[], _T]) -> _T | None:
        try:
            with naming_field(field):
                return check()
        except StrucPruneError as error:
            issues.append(error)
            return None

    model = collect("model.uri", lambda: _model(job, open_store))
    collect("output.uri_prefix", lambda: _check_output(job, open_store))
    if job.calibration is not None:
        collect("calibration.uri", partial(calibration_bytes, job.calibration, open_store))
    judged = job.evaluation
    collect("evaluation.uri", lambda: evaluation_bytes(judged, open_store))
    collect(
        "evaluation.tasks",
        lambda: check_tasks(judged, open_store, downloads=task_downloads),
    )
    return issues, model


def _model(job: PartialJob, open_store: OpenStore) -> ModelFacts | None:
    if job.model is None:
        return None
    dtype = None if job.output is None else job.output.dtype
    return read_adapted_model(job.model, open_store, experts=job.experts, dtype=dtype)


def _check_output(job: PartialJob, open_store: OpenStore) -> None:
    if job.output is None:
        return
    if job.model is not None:
        check_places_apart(job.model, job.output, open_store)
    # What a run left that broke off may be this job's own: that shows once the job is complete.
    check_output_usable(open_store(job.output.uri_prefix), of_any_job=True)
