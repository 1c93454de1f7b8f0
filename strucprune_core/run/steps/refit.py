"""`refit.l`: solve the FFN's output matrix behind removed blocks again, on what now reaches it.

Two streams of hidden states go through the layers: the dense model's, and what the model without
the blocks makes of the text. The first FFN behind a removed block sees the second. Its output
matrix is solved so that the layer's output comes as near as possible to the dense one:

    minimise over W   sum_t w_t |y_t - r_t - W a_t|^2 + g |W - W0|^2

y_t is the dense layer's output, r_t the residual stream that the FFN adds to, and a_t the input of
its output matrix (`method.layer.ridge`). The new matrix is used if the error on held-out tokens
falls.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.method.gram import GramAccumulator, token_weights
from strucprune_core.method.layer.ridge import default_damping, ratio_to_energy, ridge_into
from strucprune_core.method.linalg.matrices import Matrix
from strucprune_core.method.linalg.symmetric import add_product
from strucprune_core.models.decoder import Decoder, SiteInput
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import down_role, layer_tensors, tensor_name
from strucprune_core.plan.blocks import refitted_layers
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Refit, RefitValues
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import Solved, matrix_of
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.solutions import other_tensors, solution_tensors
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array, temporary_array

Rows = NDArray[np.float32]


@torch.inference_mode()
def refit(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the layer's solution, and the streams that enter the next layer."""
    before = np.asarray(job.units.array(Refit(unit.index).entering))
    is_last = unit.index + 1 == job.config.layers
    streams = (
        temporary_array(job.scratch, before.shape)
        if is_last
        else new_array(draft.path(Refit.streams), before.shape)
    )
    layer = _Layer(job, unit.index, before, streams)
    layer.run_dense()
    weight, values = None, RefitValues(refitted=False)
    if unit.index in refitted_layers(job.config, PrunedModel(job).config):
        solved = layer.solve()
        values = _judged(*layer.errors(solved))
        weight = solved if values.taken else None
    if not is_last:
        layer.run_pruned(weight)
        if isinstance(streams, np.memmap):
            streams.flush()
    save_bundle(draft.path(Refit.solution), layer.solution(weight))
    draft.record(values)


def _judged(before: float | None, after: float | None) -> RefitValues:
    """Whether a new matrix is used, by the error on held-out tokens."""
    taken = before is not None and after is not None and after < before
    return RefitValues(True, before, after, taken)


class _Layer:
    """One layer, dense and in the model without blocks.

    Args:
        job: The job.
        index: Which layer.
        before: The streams that enter it, (2 x samples x length x d).
        after: Those that leave it, to be filled in.
    """

    def __init__(self, job: Job, index: int, before: Rows, after: Rows) -> None:
        self._job, self._index, self._before, self._after = job, index, before, after
        self._model = PrunedModel(job)
        self._block = self._model.config.blocks[index]
        self._decoder = Decoder(self._model.config, job.dtype)
        self._role = down_role(self._model.config, index)
        self._name = tensor_name(job.config, index, self._role)

    def run_dense(self) -> None:
        """Fill in the dense stream."""
        weights = self._job.dense.layer(self._index)
        for rows in self._batches(range(self._before.shape[1])):
            trace = self._job.dense.run_layer(self._index, weights, self._before[0, rows])
            self._after[0, rows] = self._job.dense.to_host(trace.hidden)
            self._job.tick(rows.stop, 3 * self._before.shape[1])

    def solve(self) -> Tensor:
        """The new matrix, (d x channels) float32, on the device or in a scratch file."""
        job, room = self._job, self._job.room
        d, width = job.config.hidden_size, sum(self._block.ffn_widths)
        train = range(job.split.train)
        total = sum(float(self._weights_of(rows).sum()) for rows in self._batches(train))
        gram, cross = (room.matrix(size, width, torch.float32) for size in (width, d))
        sums = GramAccumulator(width, room, gram)
        step = room.panels.step(width)
        buffer = room.buffer_for(cross, step, torch.float32)
        weights = self._stream(None).layer(self._index)
        bias = f"{self._block.names.down}.bias"
        has_bias = bias in layer_tensors(self._model.config, self._index)
        for rows in self._batches(train):
            inputs: dict[str, SiteInput] = {}
            residual, source = self._decoder.attention_half(
                self._block, self._load(self._before[1, rows]), weights
            )
            self._decoder.ffn_half(self._block, source, weights, inputs)
            wanted = (self._load(self._after[0, rows]) - residual).flatten(0, 1)
            if has_bias:
                wanted -= weights[bias]
            token = self._weights_of(rows)
            sums.add(inputs["ffn"].rows, token)
            seen = inputs["ffn"].rows.float()
            add_product(cross, wanted * (token / total)[:, None], seen, step, buffer)
            job.tick(self._before.shape[1] + rows.stop, 3 * self._before.shape[1])
            del inputs, residual, source, wanted, seen
        sums.finish(total)
        solution = room.matrix(d, width, torch.float32)
        kept = torch.arange(width, device=job.device)
        damping = job.spec.pruning.damping or default_damping(sums.tokens)
        ridge_into(gram, self._matrix(), kept, damping, solution, room, cross)
        return solution.tensor

    def errors(self, solved: Tensor) -> tuple[float | None, float | None]:
        """Relative error of the layer's output on held-out tokens, before and after."""
        before, after = self._held_out_error(None), self._held_out_error(solved)
        return before, after

    def run_pruned(self, weight: Tensor | None) -> None:
        """Fill in the other stream, with the new matrix if there is one."""
        stream = self._stream(weight)
        weights = stream.layer(self._index)
        for rows in self._batches(range(self._before.shape[1])):
            trace = stream.run_layer(self._index, weights, self._before[1, rows])
            self._after[1, rows] = self._job.dense.to_host(trace.hidden)
            self._job.tick(2 * self._before.shape[1] + rows.stop, 3 * self._before.shape[1])

    def solution(self, weight: Tensor | None) -> dict[str, Tensor]:
        """The layer's solution file."""
        solutions: Solved = []
        others: dict[str, Tensor] = {}
        sites = self._model.sites(self._index)
        for site in sites:
            solution = self._model.solved(self._index, site)
            if weight is not None and site.output.role == self._role:
                solution = SiteSolution(solution.kept, self._host(weight), solution.trained)
            solutions.append((site, solution))
        if weight is not None and all(site.output.role != self._role for site in sites):
            others = {self._role: self._as_stored(self._host(weight))}
        return solution_tensors(solutions) | other_tensors(others)

    def _host(self, weight: Tensor) -> Tensor:
        if self._job.panels.fits(weight.shape[1]):
            self._job.transfers.count(to_host=weight.nbytes)
        return weight.cpu()

    def _held_out_error(self, weight: Tensor | None) -> float | None:
        stream = self._stream(weight)
        weights = stream.layer(self._index)
        error = energy = 0.0
        for rows in self._batches(range(self._job.split.train, self._before.shape[1])):
            x = self._load(self._before[1, rows])
            wanted = self._load(self._after[0, rows]).flatten(0, 1)
            got = stream.forward_layer(self._index, x, weights).hidden.flatten(0, 1)
            token = self._weights_of(rows)[:, None]
            dense_input = self._load(self._before[0, rows]).flatten(0, 1)
            error += float(((wanted - got).square() * token).sum(dtype=torch.float64))
            energy += float(((wanted - dense_input).square() * token).sum(dtype=torch.float64))
        return ratio_to_energy(error, energy)

    def _stream(self, weight: Tensor | None) -> ModelStream:
        """The model without blocks, with another matrix if one is given."""
        job, model = self._job, self._model
        replaced = {}
        if weight is not None:
            stored = TORCH_DTYPES[job.stored_dtype(self._name)]
            replaced = {self._name: lambda: self._as_stored(weight).to(stored)}
        places = [(self._index, site) for site in model.sites(self._index)]
        source = PrunedSource(job.reader, job.config, places, model.solved, replaced)
        return job.stream(model.config, source)

    def _matrix(self) -> Matrix:
        """The matrix as it is, (d x channels)."""
        shape = layer_tensors(self._model.config, self._index)[self._role]
        source = self._stream(None).source
        return matrix_of(self._job, source, self._name, shape, turned=self._turned)

    @property
    def _turned(self) -> bool:
        return self._job.config.transposed

    def _as_stored(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous() if self._turned else weight

    def _weights_of(self, rows: slice) -> Tensor:
        return token_weights(self._load(self._after[0, rows]).flatten(0, 1))

    def _batches(self, sequences: range) -> Iterator[slice]:
        length = self._before.shape[2]
        for rows in micro_batches(len(sequences), length, self._job.tiles.micro_batch_tokens):
            yield slice(sequences.start + rows.start, sequences.start + rows.stop)

    def _load(self, rows: Rows) -> Tensor:
        return self._job.dense.load(rows)
