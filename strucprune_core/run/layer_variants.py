"""What the probe windows say of a model in which one layer is other than in a given one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import experts_of, without_experts
from strucprune_core.models.forward import run_batches
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.pruned_weights import PrunedSource, prune_layer
from strucprune_core.models.streaming import Hidden, ModelStream
from strucprune_core.models.structures import SiteKind, shrink
from strucprune_core.models.vocabulary import kl_divergences
from strucprune_core.plan.memory.device import probe_runs
from strucprune_core.plan.sites import probe_shape
from strucprune_core.run.artifacts import Capture, File, OfKind, Route
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import Solved

Rows = NDArray[np.float32]
Place = Callable[[SiteKind], Hidden]
"""Where the output of the layer that is other goes, (sequences x tokens x d): a new variant."""


def variant_divergences(
    job: Job,
    group: range,
    entering: Callable[[int], Rows],
    given: Callable[[int], Solved],
    other: Callable[[int, SiteKind], Solved],
) -> list[OfKind]:
    """Divergence from the dense model of variants of a given model, one per layer and kind.

    The variants pass through the remaining layers side by side, so that each weight is read once.

    Args:
        job: The job.
        group: Layers of which there are variants.
        entering: A layer's input in the given model, (sequences x tokens x d).
        given: A layer's pruned sites in the given model.
        other: A layer's pruned sites in the variant of a kind of sites.

    Returns:
        Mean KL divergence per token, in nats, of each variant.
    """

    def change(layer: int, weights: LayerWeights, place: Place) -> None:
        start = entering(layer)
        for kind in dict.fromkeys(site.kind for site in job.sites(layer)):
            run_layer(job, layer, weights, other(layer, kind), start, place(kind))

    last = Capture(job.config.layers - 1).hidden
    return _divergences(job, group, last, given, change)


def expert_divergences(
    job: Job, group: range, kept: Callable[[int], Sequence[int]]
) -> list[OfKind]:
    """The same of variants in which one layer has lost experts, under the kind "ffn".

    Args:
        job: The job.
        group: Layers of which there are variants, if they have experts.
        kept: The experts of a layer that stay.
    """
    config = job.config

    def change(layer: int, weights: LayerWeights, place: Place) -> None:
        if experts_of(config, layer) is None:
            return
        stay = [
            kept(layer) if each == layer else range(0 if has is None else has.count)
            for each in range(config.layers)
            for has in (experts_of(config, each),)
        ]
        pruned = job.stream(
            without_experts(config, stay, equally=False), ExpertSource(job.reader, config, stay)
        )
        start = np.asarray(job.units.array(Route(layer).probe_input))
        pass_layer(job, pruned, layer, pruned.layer(layer), start, place("ffn"))

    return _divergences(job, group, Route(config.layers - 1).hidden, lambda _: [], change)


def _divergences(
    job: Job,
    group: range,
    last: File,
    given: Callable[[int], Solved],
    change: Callable[[int, LayerWeights, Place], None],
) -> list[OfKind]:
    """Pass all variants through the model; `change` adds those that are other in a layer."""
    sequences, length = probe_shape(job.spec.calibration)
    most = probe_runs(job.spec, job.config) * sequences
    states = job.dense.states((most, length, job.config.hidden_size), job.scratch)
    runs: list[tuple[int, SiteKind]] = []

    def place(layer: int, kind: SiteKind) -> Hidden:
        runs.append((layer, kind))
        return _of_run(states, len(runs) - 1, sequences)

    for layer, weights in job.dense.layers(range(group.start, job.config.layers)):
        if runs:  # A layer that is the same for all: they pass it together.
            together = states[: len(runs) * sequences]
            run_layer(job, layer, weights, given(layer), together, together)
        if layer in group:
            change(layer, weights, partial(place, layer))
        del weights
        job.tick(layer - group.start, job.config.layers - group.start)
    each = [_of_run(states, number, sequences) for number in range(len(runs))]
    divergences = divergences_from_dense(job, last, each)
    return [OfKind(*run, kl) for run, kl in zip(runs, divergences, strict=True)]


def _of_run(states: Hidden, number: int, sequences: int) -> Hidden:
    return states[number * sequences : (number + 1) * sequences]


def run_layer(
    job: Job,
    layer: int,
    weights: LayerWeights,
    solved: Solved,
    hidden: Hidden,
    output: Hidden,
) -> None:
    """Fill in the output of a layer, of which some sites are pruned.

    Args:
        job: The job.
        layer: Which layer.
        weights: Its dense tensors.
        solved: The sites that are pruned.
        hidden: Its input, (sequences x tokens x d).
        output: Filled in; it may be the input.
    """
    widths = {site.name: len(solution.kept) for site, solution in solved}
    block = shrink(job.config.blocks[layer], widths, job.spec.pruning.structures)
    blocks = list(job.config.blocks)
    blocks[layer] = block
    config = job.config.with_blocks(blocks)
    given = {site.name: solution for site, solution in solved}
    places = [(layer, site) for site, _ in solved]
    source = PrunedSource(job.reader, job.config, places, lambda _, site: given[site.name])
    stream = job.stream(config, source)
    resident = job.tiles.whole_layers
    pruned = prune_layer(weights, solved) if resident else stream.layer(layer)
    pass_layer(job, stream, layer, pruned, hidden, output)


def pass_layer(
    job: Job,
    stream: ModelStream,
    layer: int,
    weights: LayerWeights,
    hidden: Hidden,
    output: Hidden,
) -> None:
    """Fill in the output of a layer of a model, (sequences x tokens x d); it may be the input."""
    batches = run_batches(stream, layer, weights, hidden, job.scratch, job.safe_point)
    for rows, trace in batches:
        stream.put(output, rows, trace.hidden)
        del trace  # Not beside the next micro-batch's.
        job.safe_point()


def divergences_from_dense(job: Job, last: File, others: Sequence[Hidden]) -> list[float]:
    """Mean KL(dense || other) per token of other models.

    Args:
        job: The job.
        last: The last layer's output in the dense model, (samples x length x d).
        others: The same in the other models on the probe windows, (sequences x tokens x d).
    """
    dense = job.split.probe_windows(job.units.array(last))
    d = job.config.hidden_size
    return kl_divergences(
        job.dense,
        dense.reshape(-1, d),
        [hidden.reshape(-1, d) for hidden in others],
        lambda: job.tick(1, 1),
    )
