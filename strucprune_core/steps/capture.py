"""`capture.l`: run one dense layer over the calibration tokens and keep its FFN's statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.calibration.statistics import GramAccumulator, token_weights
from strucprune_core.models.forward import micro_batches, run_layer
from strucprune_core.steps.job import Job
from strucprune_core.units import Unit
from strucprune_core.workspace import Draft


@torch.inference_mode()
def capture(job: Job, unit: Unit, draft: Draft) -> None:
    """Write what later units need of a layer.

    hidden.npy       the layer's output, input of the next, (samples x length x d) float32
    gram.npy         token-weighted Gram of the FFN activations, (f x f) float32
    holdout.npy      held-out activations times sqrt(weight), (held-out tokens x f) float32
    probe_input.npy  the layer's input on the probe windows, (sequences x tokens x d) float32
    """
    ((before, name),) = unit.reads
    hidden = job.array(before, name)
    samples, length, d = hidden.shape
    layer, width = unit.index, job.config.intermediate_sizes[unit.index]
    weights = job.dense.layer(layer)
    output = np.lib.format.open_memmap(
        draft.path("hidden.npy"), mode="w+", dtype=np.float32, shape=hidden.shape
    )
    grams = GramAccumulator(width, job.device)
    for batch in micro_batches(job.train_sequences, length, job.spec.runtime.micro_batch_tokens):
        trace = run_layer(job.dense, weights, hidden[batch])
        output[batch] = trace.hidden.cpu().numpy()
        grams.add(trace.activations.reshape(-1, width), trace.hidden.reshape(-1, d))
        job.tick(batch.stop, samples)
    holdout = []
    mean_weight = grams.total_weight / (job.train_sequences * length)
    for batch in micro_batches(job.holdout_sequences, length, job.spec.runtime.micro_batch_tokens):
        rows = slice(job.train_sequences + batch.start, job.train_sequences + batch.stop)
        trace = run_layer(job.dense, weights, hidden[rows])
        output[rows] = trace.hidden.cpu().numpy()
        scale = token_weights(trace.hidden.reshape(-1, d)).div_(mean_weight).sqrt_()
        holdout.append((trace.activations.reshape(-1, width) * scale[:, None]).cpu().numpy())
    output.flush()
    np.save(draft.path("gram.npy"), grams.gram().cpu().numpy())
    np.save(draft.path("holdout.npy"), np.concatenate(holdout))
    np.save(draft.path("probe_input.npy"), probe_rows(job, hidden))


def probe_rows(job: Job, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probe windows' part of all hidden states: the beginnings of held-out sequences."""
    sequences, tokens = job.probe_shape
    first = job.train_sequences
    return np.ascontiguousarray(hidden[first : first + sequences, :tokens])
