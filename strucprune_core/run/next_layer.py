"""Which layer of the dense model a process reads next, as far as the graph says. No torch."""

from __future__ import annotations

from strucprune_core.models.tensors import layer_tensors, tensor_name
from strucprune_core.plan.graph import Unit
from strucprune_core.run import artifacts
from strucprune_core.run.context import Job

# Kinds of units that read the layer of their index, and are done layer after layer.
LAYERWISE_KINDS = frozenset(
    each.kind
    for each in (
        artifacts.Capture,
        artifacts.Route,
        artifacts.Trial,
        artifacts.Recover,
        artifacts.Refit,
    )
)


def expect_next_layer(job: Job, unit: Unit) -> None:
    """Have the layer after a unit's fetched to scratch meanwhile, if the model is far away.

    A hint: whoever reads another layer next is served as before.
    """
    layer = unit.index + 1
    if layer < job.config.layers:
        names = (tensor_name(job.config, layer, role) for role in layer_tensors(job.config, layer))
        job.reader.expect(names)
