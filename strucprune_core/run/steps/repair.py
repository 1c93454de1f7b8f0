"""`repair.l`: change the experts that stay in a layer for what those that went did."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.models.experts import experts_of
from strucprune_core.models.vocabulary import embed
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Repair, RepairValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array, temporary_array

Rows = NDArray[np.float32]


@torch.inference_mode()
def repair(job: Job, unit: Unit, draft: Draft) -> None:
    """Pass the text through the dense and the pruned layer, and write what is changed of it."""
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.run.expert_repair import LayerRepair

    this = Repair(unit.index)
    layer = LayerRepair(job, PrunedModel(job).unrepaired(), this.layer)
    dense, pruned = _entering(job, this)
    is_last = this.layer == job.config.layers - 1
    out = new_array(draft.path(Repair.streams), (2, *dense.shape))
    if experts_of(job.config, this.layer) is None:
        layer.plainly(dense, pruned, out)
        changed: dict[str, Tensor] = {}
        values = RepairValues("not tried: no experts")
    else:
        values, changed = layer.repaired(dense, pruned, out)
    out.flush()
    if is_last:
        draft.path(Repair.streams).unlink()
    save_bundle(draft.path(Repair.solution), changed)
    draft.record(values)


def _entering(job: Job, this: Repair) -> tuple[Rows, Rows]:
    """The layer's input in the dense and in the pruned model, (samples x length x d)."""
    if this.layer:
        streams = job.units.array(Repair(this.layer - 1).streams)
        return streams[0], streams[1]
    windows = np.asarray(job.units.array(Tokens().calibration))
    hidden = temporary_array(job.scratch, (*windows.shape, job.config.hidden_size))
    embed(job.dense, windows, hidden, lambda: job.tick(0, 1))
    return hidden, hidden
