"""`replay`: the first layer's input for recovery or refits, one stream of hidden states or two."""

from __future__ import annotations

import numpy as np

from strucprune_core.models.vocabulary import embed
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Replay, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array


def replay(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the embedded calibration windows, once for each stream."""
    windows = np.asarray(job.units.array(Tokens().calibration))
    shape = (_stream_count(job), *windows.shape, job.config.hidden_size)
    streams = new_array(draft.path(Replay.streams), shape)
    embed(job.dense, windows, streams[0])
    streams[1:] = streams[0]
    streams.flush()


def _stream_count(job: Job) -> int:
    spec = job.spec.pruning.recover
    if job.refits:
        return 2
    return 2 if spec is not None and spec.mode == "sequential" else 1
