"""`divergence`: what the model does without the chosen experts, before any file is written.

That a model has experts to spare is not assumed: models differ widely in that.
"""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.models.forward import final_hidden
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Capture, DivergenceValues, Route, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import divergences_from_dense
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def divergence(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure the KL divergence on held-out calibration text; writes no file."""
    layers = job.config.layers
    windows = job.split.probe_windows(np.asarray(job.units.array(Tokens().calibration)))
    ticks = iter(range(1, 1 << 30))
    hidden = final_hidden(
        PrunedModel(job).stream(), windows, job.scratch, lambda: job.tick(next(ticks), layers)
    )
    last = Route(layers - 1).hidden if job.removes_experts_alone else Capture(layers - 1).hidden
    (kl,) = divergences_from_dense(job, last, [np.asarray(hidden)])
    draft.record(DivergenceValues(kl))
