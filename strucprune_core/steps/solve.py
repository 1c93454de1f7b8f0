"""`solve.l`: choose a layer's channels and repair the rest."""

from __future__ import annotations

import numpy as np
import torch

from strucprune_core.solver.ridge import relative_error, ridge
from strucprune_core.steps.allocation import load_down_projection, load_gram
from strucprune_core.steps.job import Job
from strucprune_core.units import Unit
from strucprune_core.workspace import Draft


@torch.inference_mode()
def solve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write kept.npy (k,) int64 and weight.npy (d x k) float32 of a layer."""
    layer = unit.index
    width = job.widths()[layer]
    order = torch.from_numpy(np.array(job.array(f"curve.{layer}", "order.npy")))
    kept = order[len(order) - width :].sort().values
    dense = load_down_projection(job, layer)
    solution = ridge(load_gram(job, layer), dense, kept.to(job.device), job.damping)
    weight = solution.weight.float()
    holdout = torch.from_numpy(np.array(job.array(f"capture.{layer}", "holdout.npy")))
    error = relative_error(holdout.to(job.device), dense, weight, kept.to(job.device))
    np.save(draft.path("kept.npy"), kept.numpy())
    np.save(draft.path("weight.npy"), weight.cpu().numpy())
    draft.values["reconstruction_error"] = error
    draft.values["damping"] = solution.damping
    draft.values["damping_retries"] = solution.retries
