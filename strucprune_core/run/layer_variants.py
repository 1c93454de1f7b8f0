"""What the probe windows say of a model in which one layer is other than in a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import experts_of, without_experts
from strucprune_core.models.forward import run_batches
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.pruned_weights import PrunedSource, prune_layer
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import SiteKind, shrink
from strucprune_core.models.vocabulary import kl_divergences
from strucprune_core.run.artifacts import Capture, File, OfKind, Route
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import Solved

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Run:
    """The probe windows on their way through a model whose `layer` is other in sites of a kind."""

    layer: int
    kind: SiteKind
    hidden: Rows


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

    def changed(layer: int, weights: LayerWeights) -> Iterator[tuple[SiteKind, Rows]]:
        start = entering(layer)
        for kind in dict.fromkeys(site.kind for site in job.sites(layer)):
            yield kind, run_layer(job, layer, weights, other(layer, kind), start)

    last = Capture(job.config.layers - 1).hidden
    return _divergences(job, group, last, given, changed)


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

    def changed(layer: int, weights: LayerWeights) -> Iterator[tuple[SiteKind, Rows]]:
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
        yield "ffn", pass_layer(job, pruned, layer, pruned.layer(layer), start)

    return _divergences(job, group, Route(config.layers - 1).hidden, lambda _: [], changed)


def _divergences(
    job: Job,
    group: range,
    last: File,
    given: Callable[[int], Solved],
    changed: Callable[[int, LayerWeights], Iterable[tuple[SiteKind, Rows]]],
) -> list[OfKind]:
    """Pass all variants through the model; `changed` gives a layer's variants after that layer."""
    runs: list[_Run] = []
    for layer, weights in job.dense.layers(range(group.start, job.config.layers)):
        solved = given(layer)
        runs = _through(job, layer, weights, solved, runs)
        if layer in group:
            runs += [_Run(layer, kind, hidden) for kind, hidden in changed(layer, weights)]
        del weights
        job.tick(layer - group.start, job.config.layers - group.start)
    divergences = divergences_from_dense(job, last, [run.hidden for run in runs])
    return [OfKind(run.layer, run.kind, kl) for run, kl in zip(runs, divergences, strict=True)]


def _through(
    job: Job, layer: int, weights: LayerWeights, solved: Solved, runs: list[_Run]
) -> list[_Run]:
    """All runs after a layer that is the same for all: they pass it together."""
    if not runs:
        return []
    hidden = run_layer(job, layer, weights, solved, np.concatenate([run.hidden for run in runs]))
    parts = np.split(hidden, len(runs))
    return [replace(run, hidden=part) for run, part in zip(runs, parts, strict=True)]


def run_layer(job: Job, layer: int, weights: LayerWeights, solved: Solved, hidden: Rows) -> Rows:
    """A layer, of which some sites are pruned, on (sequences x tokens x d)."""
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
    return pass_layer(job, stream, layer, pruned, hidden)


def pass_layer(
    job: Job, stream: ModelStream, layer: int, weights: LayerWeights, hidden: Rows
) -> Rows:
    """The output of a layer of a model, (sequences x tokens x d)."""
    output = np.empty_like(hidden)
    batches = run_batches(stream, layer, weights, hidden, job.scratch, job.safe_point)
    for rows, trace in batches:
        output[rows] = trace.hidden.cpu().numpy()
        del trace  # Not beside the next micro-batch's.
        job.safe_point()
    return output


def divergences_from_dense(job: Job, last: File, others: list[Rows]) -> list[float]:
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
