"""`weights`: every tensor of the model is read once, and must hold finite values."""

from __future__ import annotations

from strucprune_core.checkpoint.finite import check_finite_tensor
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import WeightsValues
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft


def weights(job: Job, unit: Unit, draft: Draft) -> None:
    """Count the tensors that were read; writes no file.

    Raises:
        InvalidCheckpoint: see `check_weights`.
    """
    draft.record(WeightsValues(check_weights(job)))


def check_weights(job: Job) -> int:
    """Read every tensor once; how many there are.

    Raises:
        InvalidCheckpoint: a value is not finite; names the tensor, its file and its layer.
    """
    infos = [job.index.tensors[name] for name in expected_tensors(job.config)]
    infos.sort(key=lambda info: (info.file, info.start))  # As they lie, for what reads ahead.
    layers = {
        tensor_name(job.config, layer, role): layer
        for layer in range(job.config.layers)
        for role in layer_tensors(job.config, layer)
    }
    for number, info in enumerate(infos):

        def tick(done: int = number) -> None:
            job.tick(done, len(infos))

        check_finite_tensor(job.reader, info.name, tick, layers.get(info.name))
    return len(infos)
