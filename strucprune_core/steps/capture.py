"""`capture.l`: run one dense layer over the calibration tokens and keep its sites' statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.calibration.statistics import GramAccumulator, token_weights
from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.models.decoder import LayerTrace
from strucprune_core.models.forward import micro_batches
from strucprune_core.steps.job import Job
from strucprune_core.tiling import HOLDOUT_TOKENS
from strucprune_core.units import Unit
from strucprune_core.workspace import Draft

GRAMS, HOLDOUT = "grams.safetensors", "holdout.safetensors"


@torch.inference_mode()
def capture(job: Job, unit: Unit, draft: Draft) -> None:
    """Write what later units need of a layer.

    hidden.npy           the layer's output, input of the next, (samples x length x d) float32
    grams.safetensors    per site, the token-weighted Gram of its inputs, (m x m) float32
    holdout.safetensors  per site, held-out inputs times sqrt(weight), (at most HOLDOUT_TOKENS x m)
    probe_input.npy      the layer's input on the probe windows, (sequences x tokens x d) float32
    """
    ((before, name),) = unit.reads
    hidden = job.array(before, name)
    samples, train = len(hidden), job.train_sequences
    sites = job.sites(unit.index)
    output = np.lib.format.open_memmap(
        draft.path("hidden.npy"), mode="w+", dtype=np.float32, shape=hidden.shape
    )
    grams = {
        site.name: GramAccumulator(site.structures * site.columns, job.device) for site in sites
    }
    holdout: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    total_weight = 0.0
    for rows, trace in _run(job, unit.index, hidden, range(train)):
        output[rows] = trace.hidden.cpu().numpy()
        weights = token_weights(trace.hidden.flatten(0, 1))
        total_weight += float(weights.sum(dtype=torch.float64))
        for site in grams:
            seen = trace.inputs[site]
            grams[site].add(seen.rows, weights if seen.tokens is None else weights[seen.tokens])
        job.tick(rows.stop, samples)
        del trace, seen, weights  # They are a micro-batch's: not two at a time.
    mean_weight = total_weight / (train * hidden.shape[1])
    for rows, trace in _run(job, unit.index, hidden, range(train, samples)):
        output[rows] = trace.hidden.cpu().numpy()
        scale = token_weights(trace.hidden.flatten(0, 1)).div_(mean_weight).sqrt_()
        for site in holdout:
            seen = trace.inputs[site]
            factor = scale if seen.tokens is None else scale[seen.tokens]
            room = HOLDOUT_TOKENS - sum(len(kept) for kept in holdout[site])
            holdout[site].append((seen.rows[:room] * factor[:room, None]).cpu())
        del trace, seen, scale, factor
    output.flush()
    save_bundle(draft.path(GRAMS), {site: sums.gram(total_weight) for site, sums in grams.items()})
    save_bundle(draft.path(HOLDOUT), {site: torch.cat(rows) for site, rows in holdout.items()})
    np.save(draft.path("probe_input.npy"), probe_rows(job, hidden))


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
