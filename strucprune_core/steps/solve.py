"""`solve.l`: choose what stays of a layer, and repair it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.solver.ridge import relative_error
from strucprune_core.steps.allocation import load_order, load_output_matrix, solve_site
from strucprune_core.steps.capture import HOLDOUT
from strucprune_core.steps.job import SOLUTION, Job
from strucprune_core.units import Unit
from strucprune_core.workspace import Draft


@torch.inference_mode()
def solve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write solution.safetensors: per site the kept structures and their columns.

    Value `sites`: per site `reconstruction_error`, `damping` and `damping_retries`.
    """
    layer = unit.index
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for site in job.sites(layer):
        order = load_order(job, layer, site)
        kept = order[len(order) - job.width(layer, site) :].sort().values
        solution, damping, retries = solve_site(job, layer, site, kept)
        columns = torch.tensor(site.output.indices(kept.tolist()), device=job.device)
        error = relative_error(
            job.tensor(f"capture.{layer}", HOLDOUT, site.name),
            load_output_matrix(job, layer, site),
            solution.weight,
            columns,
        )
        tensors[f"{site.name}.kept"] = solution.kept
        tensors[f"{site.name}.weight"] = solution.weight
        values[site.name] = {
            "reconstruction_error": error,
            "damping": damping,
            "damping_retries": retries,
        }
    save_bundle(draft.path(SOLUTION), tensors)
    draft.values["sites"] = values
