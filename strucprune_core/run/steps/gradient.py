"""`gradient.g`: energies from the loss's gradients, back through the layers of a group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strucprune_core.method.allocation.energies import gradient_energy
from strucprune_core.models.backward import backward_layer
from strucprune_core.models.output_gradients import loss_gradients
from strucprune_core.models.panels import LayerWeights
from strucprune_core.plan.graph import Unit, probe_groups
from strucprune_core.run.artifacts import Capture, Gradient, GradientValues, OfKind, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft

Rows = NDArray[np.float32]


def gradient(job: Job, unit: Unit, draft: Draft) -> None:
    """Pass the gradient of the probe windows' loss back through a group of dense layers.

    Write the gradient at this group's input, for the group before it.
    """
    group = probe_groups(job.config.layers)[unit.index]
    flow = _entering(job, unit.index, group)
    energies: list[OfKind] = []
    layers = job.dense.in_turn(reversed(group), job.dense.whole_layer)
    for done, (layer, weights) in enumerate(layers):
        of_layer, flow = _layer(job, layer, weights, flow)
        energies += of_layer
        del weights
        job.tick(done, len(group))
    if group.start > 0:
        np.save(draft.path(Gradient.flow), flow)
    draft.record(GradientValues(energies))


def _entering(job: Job, number: int, group: range) -> Rows:
    """The gradient at the output of a group's last layer."""
    if group.stop == job.config.layers:
        return _at_the_end(job)
    return np.asarray(job.units.array(Gradient(number + 1).flow))


def _at_the_end(job: Job) -> Rows:
    """Gradient of the windows' summed next-token loss at the last layer's output."""
    last = Capture(job.config.layers - 1)
    hidden = job.split.probe_windows(job.units.array(last.hidden))
    tokens = job.split.probe_windows(job.units.array(Tokens().calibration))
    flow = np.zeros_like(hidden)  # Nothing is predicted from the last position of a window.
    predicting = hidden[:, :-1]
    flow[:, :-1] = loss_gradients(
        job.dense,
        predicting.reshape(-1, hidden.shape[-1]),
        tokens[:, 1:].reshape(-1),
        lambda: job.tick(0, 1),
    ).reshape(predicting.shape)
    return flow


def _layer(job: Job, layer: int, weights: LayerWeights, flow: Rows) -> tuple[list[OfKind], Rows]:
    """(energies, gradient at the layer's input), a window at a time."""
    inputs = job.units.array(Capture(layer).probe_input)
    before = np.empty_like(flow)
    squares: dict[str, list[NDArray[np.float32]]] = {}
    width: dict[str, int] = {}
    for window in range(len(flow)):
        rows = slice(window, window + 1)
        result = backward_layer(job.dense, layer, weights, inputs[rows], flow[rows])
        before[rows] = job.dense.to_host(result.at_input)
        for kind, gradients in result.at_outputs:
            squares.setdefault(kind, []).append(
                job.dense.to_host(gradients[0, :-1].square().sum(-1))
            )
            width[kind] = gradients.shape[-1]
    energies = [
        OfKind(layer, kind, gradient_energy(np.concatenate(squares[kind]), width[kind]))
        for kind in dict.fromkeys(site.kind for site in job.sites(layer))
    ]
    return energies, before
