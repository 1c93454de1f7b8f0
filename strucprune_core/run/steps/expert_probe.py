"""`expert_probe`: what the model loses with fewer and fewer experts."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.models.experts import experts_of
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.shared_budget import measured_steps
from strucprune_core.run.artifacts import Capture, ExpertProbeValues
from strucprune_core.run.context import Job
from strucprune_core.run.layer_variants import divergences_from_dense, pass_layer
from strucprune_core.run.shared_choice import kept_after
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def expert_probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Pass the probe windows through the model with each number of experts; writes no file.

    All pass a layer side by side, so that its weights are read once.
    """
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.run.masked_experts import masked_layer

    numbers = measured_steps(job.config, job.spec.pruning)
    kept = [kept_after(job, steps) for steps in numbers]
    runs = [np.asarray(job.units.array(Capture(0).probe_input)) for _ in numbers]
    for layer, weights in job.dense.layers(range(job.config.layers)):
        if experts_of(job.config, layer) is None:
            together = np.concatenate(runs)
            pass_layer(job, job.dense, layer, weights, together, together)
            runs = np.split(together, len(runs))
        else:
            runs = [
                masked_layer(job, layer, weights, stay[layer], hidden)
                for stay, hidden in zip(kept, runs, strict=True)
            ]
        del weights
        job.tick(layer, job.config.layers)
    kls = divergences_from_dense(job, Capture(job.config.layers - 1).hidden, runs)
    draft.record(ExpertProbeValues(list(zip(numbers, kls, strict=True))))
