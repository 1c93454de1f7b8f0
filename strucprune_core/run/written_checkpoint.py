"""The pruned checkpoint as its users will read it: from the files that were written."""

from __future__ import annotations

from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.models.read_config import read_config
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import check_tensors
from strucprune_core.run.context import Job
from strucprune_core.run.result_files import pruned_checkpoint


def reopened(job: Job) -> tuple[CheckpointIndex, ModelStream]:
    """The layout and the model of the written files.

    Raises:
        InvalidCheckpoint: they are not what their config.json describes.
    """
    config, index = read_config(
        open_checkpoint(pruned_checkpoint(job)), experts=job.removes_experts_alone
    )
    check_tensors(config, index)
    return index, job.stream(config, TensorReader(index))
