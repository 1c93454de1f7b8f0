"""`gradient.g`: energies from the loss's gradients, back through the layers of a group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.energies import gradient_energy
from strucprune_core.models.backward import backward_layer
from strucprune_core.models.output_gradients import loss_gradients
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.context import Job
from strucprune_core.run.steps.capture import probe_rows
from strucprune_core.run.workspace import Draft

GRADIENT = "gradient.npy"
Rows = NDArray[np.float32]


def gradient(job: Job, unit: Unit, draft: Draft) -> None:
    """Lead the gradient of the probe windows' loss back through a group of dense layers.

    Write gradient.npy for the group before: the gradient at this group's input, (sequences x tokens
    x d) float32. Value `energies`: [layer, kind, energy] of each.
    """
    group = probe_groups(job.config.layers)[unit.index]
    last = group.stop == job.config.layers
    flow = _at_the_end(job) if last else np.asarray(job.array(*unit.reads[0]))
    found: list[tuple[int, str, float]] = []
    for done, layer in enumerate(reversed(group)):
        energies, flow = _layer(job, layer, flow)
        found += energies
        job.tick(done, len(group))
    if group.start > 0:
        np.save(draft.path(GRADIENT), flow)
    draft.values["energies"] = found


def _at_the_end(job: Job) -> Rows:
    """Gradient of the windows' summed next-token loss at the last layer's output."""
    hidden = probe_rows(job, job.array(f"capture.{job.config.layers - 1}", "hidden.npy"))
    tokens = probe_rows(job, job.array("tokens", "calibration.npy"))
    flow = np.zeros_like(hidden)  # Nothing is predicted from the last position of a window.
    predicting = hidden[:, :-1]
    flow[:, :-1] = loss_gradients(
        job.dense,
        predicting.reshape(-1, hidden.shape[-1]),
        tokens[:, 1:].reshape(-1),
        lambda: job.tick(0, 1),
    ).reshape(predicting.shape)
    return flow


def _layer(job: Job, layer: int, flow: Rows) -> tuple[list[tuple[int, str, float]], Rows]:
    """(energies, gradient at the layer's input), a window at a time."""
    weights = job.dense.whole_layer(layer)
    inputs = job.array(f"capture.{layer}", "probe_input.npy")
    before = np.empty_like(flow)
    squares: dict[str, list[NDArray[np.float32]]] = {}
    for window in range(len(flow)):
        rows = slice(window, window + 1)
        result = backward_layer(job.dense, layer, weights, inputs[rows], flow[rows])
        before[rows] = result.at_input.cpu().numpy()
        for kind, gradients in result.at_outputs.items():
            squares.setdefault(kind, []).append(gradients[0, :-1].square().sum(-1).cpu().numpy())
    kinds = dict.fromkeys(site.kind for site in job.sites(layer))
    d = job.config.hidden_size
    return [
        (layer, kind, gradient_energy(np.concatenate(squares[kind]), d)) for kind in kinds
    ], before
