"""Fixes the revisions of a job: each branch of a hub is replaced by its commit. No torch.

A service does it when a job is submitted, the command and the library when it first runs. The
commit is part of the job from then on: of its fingerprint and its report. So an attempt that
resumes it reads the same files, whatever was pushed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from strucprune_core.errors import naming_field
from strucprune_core.spec import JobSpec


def pinned_spec(spec: JobSpec, pin: Callable[[str], str]) -> JobSpec:
    """The job with every URI that it reads replaced by what `pin` makes of it.

    Args:
        spec: The job.
        pin: `storage.open.pinned`, or what remembers its results.

    Raises:
        StrucPruneError: raised by `pin`, with the field of the job.
    """
    with naming_field("model.uri"):
        model = spec.model.model_copy(update={"uri": pin(spec.model.uri)})
    if model.adapter_uri is not None:
        with naming_field("model.adapter_uri"):
            model = model.model_copy(update={"adapter_uri": pin(model.adapter_uri)})
    calibration, evaluation = spec.calibration, spec.evaluation
    if calibration.uri is not None:
        with naming_field("calibration.uri"):
            calibration = calibration.model_copy(update={"uri": pin(calibration.uri)})
    if evaluation is not None:
        with naming_field("evaluation.uri"):
            evaluation = evaluation.model_copy(update={"uri": pin(evaluation.uri)})
        if evaluation.task_files is not None:
            with naming_field("evaluation.task_files"):
                pinned_files = pin(evaluation.task_files)
                evaluation = evaluation.model_copy(update={"task_files": pinned_files})
    return spec.model_copy(
        update={"model": model, "calibration": calibration, "evaluation": evaluation}
    )
