"""The URIs that a job names, by field. No torch."""

from __future__ import annotations

from typing import Protocol, TypeVar

from pydantic import BaseModel

from strucprune_core.spec import CalibrationSpec, EvaluationSpec, ModelSpec, OutputSpec

_J = TypeVar("_J", bound=BaseModel)


class NamesPlaces(Protocol):
    """A job, or the part of one that is known."""

    @property
    def model(self) -> ModelSpec | None:
        """The checkpoint to prune."""

    @property
    def output(self) -> OutputSpec | None:
        """Where the result goes."""

    @property
    def calibration(self) -> CalibrationSpec | None:
        """What the statistics are computed on."""

    @property
    def evaluation(self) -> EvaluationSpec | None:
        """What the result is judged on."""


def named_uris(job: NamesPlaces) -> dict[str, str]:
    """The URIs by the fields that name them; that of the output is the only one written to."""
    uris: dict[str, str | None] = {}
    if job.model is not None:
        uris["model.uri"] = job.model.uri
        uris["model.adapter_uri"] = job.model.adapter_uri
    if job.output is not None:
        uris["output.uri_prefix"] = job.output.uri_prefix
    if job.calibration is not None:
        uris["calibration.uri"] = job.calibration.uri
    if job.evaluation is not None:
        uris["evaluation.uri"] = job.evaluation.uri
        uris["evaluation.task_files"] = job.evaluation.task_files
    return {field: uri for field, uri in uris.items() if uri is not None}


def with_uri(job: _J, field: str, uri: str) -> _J:
    """The job with another URI in a field that names one."""
    section, name = field.split(".")
    changed = getattr(job, section).model_copy(update={name: uri})
    return job.model_copy(update={section: changed})
