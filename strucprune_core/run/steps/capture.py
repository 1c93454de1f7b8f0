"""`capture.l`: run one dense layer over the calibration tokens and keep its sites' statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.calibration.degeneracy import refuse_rank
from strucprune_core.checkpoint.bundle import new_bundle, save_bundle
from strucprune_core.checkpoint.writer import PlannedTensor
from strucprune_core.method.gram import (
    GramAccumulator,
    SiteStatistics,
    assumed_energy,
    token_weights,
)
from strucprune_core.models.decoder import LayerTrace
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.structures import Site, SiteKind
from strucprune_core.models.tiles import HOLDOUT_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import largest_known
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array
from strucprune_core.scratch.mapped_matrix import HostMatrix

GRAMS, HOLDOUT = "grams.safetensors", "holdout.safetensors"


@torch.inference_mode()
def capture(job: Job, unit: Unit, draft: Draft) -> None:
    """Write what later units need of a layer.

    hidden.npy           the layer's output, input of the next, (samples x length x d) float32
    grams.safetensors    per site, the token-weighted Gram of its inputs, (m x m) float32
    holdout.safetensors  per site, held-out inputs times sqrt(weight), (at most HOLDOUT_TOKENS x m)
    probe_input.npy      the layer's input on the probe windows, (sequences x tokens x d) float32

    Value `sites`: per site its `SiteStatistics`.

    Raises:
        InvalidText: the text is degenerate (see `calibration.degeneracy`).
    """
    ((before, name),) = unit.reads
    hidden = job.array(before, name)
    samples, train = len(hidden), job.train_sequences
    sites = job.sites(unit.index)
    output = new_array(draft.path("hidden.npy"), hidden.shape)
    widths = {site.name: site.structures * site.columns for site in sites}
    total_weight = 0.0
    planned = [PlannedTensor(site, "F32", (width, width)) for site, width in widths.items()]
    with new_bundle(draft.path(GRAMS), planned) as arrays:
        files = {site: HostMatrix(array, job.device) for site, array in arrays.items()}
        grams = {
            site: GramAccumulator(width, job.room, None if job.panels.fits(width) else files[site])
            for site, width in widths.items()
        }
        for rows, trace in _run(job, unit.index, hidden, range(train)):
            output[rows] = trace.hidden.cpu().numpy()
            total_weight += _sum_up(trace, grams)
            del trace  # Not beside the next micro-batch's.
            job.tick(rows.stop, samples)
        draft.values["sites"] = _finish(sites, grams, total_weight, files)
    if not job.spec.calibration.allow_degenerate:
        ranks = [site["effective_rank"] for site in draft.values["sites"].values()]
        refuse_rank(largest_known(ranks), max(widths.values()), job.spec.calibration.place)
    mean_weight = total_weight / (train * hidden.shape[1])
    held_out = min(HOLDOUT_TOKENS, (samples - train) * hidden.shape[1])
    holdout = {site: _Rows(job, held_out, width) for site, width in widths.items()}
    for rows, trace in _run(job, unit.index, hidden, range(train, samples)):
        output[rows] = trace.hidden.cpu().numpy()
        _hold_out(trace, mean_weight, holdout)
        del trace
    output.flush()
    save_bundle(draft.path(HOLDOUT), {site: kept.tensor() for site, kept in holdout.items()})
    np.save(draft.path("probe_input.npy"), probe_rows(job, hidden))


def _sum_up(trace: LayerTrace, grams: dict[str, GramAccumulator]) -> float:
    """Add a micro-batch to the sums; the sum of its token weights."""
    weights = token_weights(trace.hidden.flatten(0, 1))
    for site, sums in grams.items():
        seen = trace.inputs[site]
        sums.add(seen.rows, weights if seen.tokens is None else weights[seen.tokens])
    return float(weights.sum(dtype=torch.float64))


def _finish(
    sites: list[Site],
    grams: dict[str, GramAccumulator],
    total_weight: float,
    files: dict[str, HostMatrix],
) -> dict[str, dict[str, Any]]:
    """Write the Gram matrices: one after the other, so that sums on the device go."""
    energies = {site: sums.energy(total_weight) for site, sums in grams.items()}
    means = {kind: _mean_energy(sites, kind, energies) for kind in {site.kind for site in sites}}
    kinds = {site.name: site.kind for site in sites}
    found: dict[str, dict[str, Any]] = {}
    while grams:
        site, sums = grams.popitem()
        assumed = assumed_energy(sums.tokens, sums.columns, means[kinds[site]])
        rank = sums.finish(total_weight, files[site], assumed)
        statistics = SiteStatistics(sums.tokens, sums.columns, energies[site], assumed, rank)
        found[site] = asdict(statistics)
    return found


def _mean_energy(sites: list[Site], kind: SiteKind, energies: dict[str, float]) -> float:
    """Mean energy of a column over all sites of a kind."""
    columns = {site.name: site.structures * site.columns for site in sites if site.kind == kind}
    total = sum(energies[name] * count for name, count in columns.items())
    return total / sum(columns.values())


def _hold_out(trace: LayerTrace, mean_weight: float, holdout: dict[str, _Rows]) -> None:
    """Keep a micro-batch's inputs, scaled, as long as there is room."""
    scale = token_weights(trace.hidden.flatten(0, 1)).div_(mean_weight).sqrt_()
    for site, kept in holdout.items():
        seen = trace.inputs[site]
        factor = scale if seen.tokens is None else scale[seen.tokens]
        kept.add(seen.rows[: kept.room] * factor[: kept.room, None])


class _Rows:
    """At most so many rows, collected on the host: in a scratch file where a panel is smaller."""

    def __init__(self, job: Job, most: int, width: int) -> None:
        self.room = most
        if job.panels.fits(width):
            self._rows = torch.from_numpy(np.empty((most, width), dtype=np.float32))
        else:
            self._rows = job.room.matrix(most, width, torch.float32).tensor
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows, no more than there is room for."""
        self._rows[self._count : self._count + len(rows)] = rows.cpu()
        self._count += len(rows)
        self.room -= len(rows)

    def tensor(self) -> Tensor:
        """All rows, (count x width) float32."""
        return self._rows[: self._count]


Number = TypeVar("Number", bound=np.generic)


def probe_rows(job: Job, states: NDArray[Number]) -> NDArray[Number]:
    """The probe windows' part of all hidden states, or tokens: the beginnings of held-out ones."""
    sequences, tokens = job.probe_shape
    first = job.train_sequences
    return np.ascontiguousarray(states[first : first + sequences, :tokens])


def _run(
    job: Job, layer: int, hidden: NDArray[np.float32], sequences: range
) -> Iterator[tuple[slice, LayerTrace]]:
    """The dense layer on some sequences: (which, what it gave), a micro-batch at a time."""
    weights = job.dense.layer(layer)
    kinds = {site.kind for site in job.sites(layer)}
    length = hidden.shape[1]
    for batch in micro_batches(len(sequences), length, job.tiles.micro_batch_tokens):
        rows = slice(sequences.start + batch.start, sequences.start + batch.stop)
        yield rows, job.dense.run_layer(layer, weights, hidden[rows], record=kinds)
