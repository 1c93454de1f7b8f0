"""`embed`: the first layer's input on the calibration text."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.models import vocabulary
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Embed, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array


@torch.inference_mode()
def embed(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the embedded calibration windows."""
    windows = np.asarray(job.units.array(Tokens().calibration))
    hidden = new_array(draft.path(Embed.hidden), (*windows.shape, job.config.hidden_size))
    vocabulary.embed(job.dense, windows, hidden, lambda: job.tick(0, 1))
    hidden.flush()
