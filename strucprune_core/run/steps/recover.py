"""`recover.l`: pass the calibration text through layer l once more and train what was solved.

Two streams of hidden states go through the layers: the dense model's, and what the pruned layers
make of the text. In mode `sequential` a pruned layer sees the second and is trained to lead it back
to the first; in mode `parallel` there is only the first. Memory holds one layer; streams are files.

Only FFNs are trained: those that are pruned, and where blocks go, all that are left. A layer whose
FFN has gone hands both streams on. Where the layer is written out, attention runs once, and the FFN
is trained on tokens from anywhere. A layer in transformers' modules cannot be taken apart: it runs
as a whole in each step, so a batch is whole sequences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.gram import token_weights
from strucprune_core.method.training.recovery import (
    RecoveryOptions,
    RecoveryResult,
    RecoveryStatus,
    Tokens,
)
from strucprune_core.method.training.recovery import recover as recover_block
from strucprune_core.models.decoder import Decoder
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.pruned_weights import SiteSolution, as_stored, prune_layer
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Recover, RecoverValues, Solve
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import Solved
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.solutions import (
    load_solution,
    other_tensors,
    recovered_roles,
    solution_tensors,
)
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array, temporary_array

Rows = NDArray[np.float32]


def recover(job: Job, unit: Unit, draft: Draft) -> None:
    """Train one layer. Write its solution, and the streams that enter the next layer."""
    before = np.asarray(job.units.array(Recover(unit.index).entering))
    kind = _Halves if job.config.generic is None else _Whole
    with torch.no_grad():
        layer = kind(job, unit.index, before)
        result = layer.train()
        save_bundle(draft.path(Recover.solution), layer.solution(result.weights))
        if unit.index + 1 < job.config.layers:
            streams = new_array(draft.path(Recover.streams), before.shape)
            layer.finish(result.weights, streams)
            streams.flush()
    draft.record(
        RecoverValues(result.status.value, _known(result.error_before), _known(result.error_after))
    )


class _Layer(ABC):
    """One layer, dense and pruned, of which the FFN is trained."""

    def __init__(self, job: Job, index: int, before: Rows) -> None:
        """`before`: the streams that enter the layer, (streams x samples x length x d)."""
        self._job, self._index, self._before = job, index, before
        file, model = job.units.path(Solve(index).solution), PrunedModel(job)
        self._solved = [(site, load_solution(file, site)) for site in model.sites(index)]
        self._stream = job.stream(model.config, model.solved_source())
        self._dense = job.dense.in_float32.whole_layer(index)  # What is trained is float32.
        self._pruned = prune_layer(self._dense, self._solved)
        self._trained = recovered_roles(model.config, index)

    @abstractmethod
    def prepare(self) -> Tokens:
        """What is trained on, sequence by sequence: (samples x length ...)."""

    @abstractmethod
    def finish(self, trained: Mapping[str, Tensor], streams: Rows) -> None:
        """Write the streams that leave the layer, (streams x samples x length x d)."""

    @abstractmethod
    def _rows(self, tokens: Tokens) -> Tokens:
        """Sequences in the rows that batches are drawn from."""

    @abstractmethod
    def _block(self, x: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        """What rows become with the weights in training."""

    def train(self) -> RecoveryResult:
        """Train the FFN, if there is one, on what `prepare` gives."""
        if not self._trained:
            return RecoveryResult({}, RecoveryStatus.REJECTED, None, None, ())
        tokens = self.prepare()
        steps = self._steps()
        done = iter(range(1, steps + 1))

        def part(sequences: slice) -> Tokens:
            arrays = (tokens.inputs, tokens.targets, tokens.weights)
            return self._rows(Tokens(*(array[sequences] for array in arrays)))

        train = self._job.split.train
        return recover_block(
            self._block,
            {role: self._pruned[role] for role in self._trained},
            part(slice(0, train)),
            part(slice(train, None)),
            RecoveryOptions(steps=steps, seed=self._index),
            lambda: self._job.tick(steps + next(done), 3 * steps),
            self._job.dense.load,
        )

    def solution(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's solution file with the FFN's weights as they are now."""
        solutions: Solved = []
        others = {role: self._host_tensor(trained[role]) for role in self._trained}
        for site, solution in self._solved:
            if site.kind == "ffn":
                solution = SiteSolution(
                    solution.kept,
                    as_stored(others.pop(site.output.role), site),  # Turning twice: (d x columns).
                    {
                        part.role: others.pop(part.role)
                        for part in site.coupled
                        if part.role in others
                    },
                )
            solutions.append((site, solution))
        return solution_tensors(solutions) | other_tensors(others)

    def _batches(self) -> Iterator[slice]:
        _, samples, length, _ = self._before.shape
        return micro_batches(samples, length, self._job.tiles.micro_batch_tokens)

    def _streams(self, rows: slice) -> tuple[Tensor, Tensor]:
        """What the dense and what the pruned layer sees."""
        dense = self._load(self._before[0, rows])
        return dense, dense if len(self._before) == 1 else self._load(self._before[1, rows])

    def _load(self, rows: Rows) -> Tensor:
        return self._job.dense.load(rows)

    def _to_host(self, values: Tensor) -> Rows:
        return self._job.dense.to_host(values)

    def _host_tensor(self, values: Tensor) -> Tensor:
        self._job.transfers.count(to_host=values.nbytes)
        return values.cpu()

    def _steps(self) -> int:
        spec = self._job.spec.pruning.recover
        return 0 if spec is None else spec.steps

    def _prepared(self, rows: slice) -> None:
        """Tell that these sequences are prepared."""
        self._job.tick(rows.stop, 3 * self._before.shape[1])

    def _finished(self, rows: slice) -> None:
        """Tell that these sequences have left the layer."""
        samples = self._before.shape[1]
        self._job.tick(2 * samples + rows.stop, 3 * samples)


class _Halves(_Layer):
    """A layer in two halves: attention, which stands, and the FFN to train."""

    def __init__(self, job: Job, index: int, before: Rows) -> None:
        super().__init__(job, index, before)
        self._decoder = Decoder(job.config, job.dtype)
        self._dense_block = job.config.blocks[index]
        self._block_shape = self._stream.config.blocks[index]
        arrays = temporary_array(job.scratch, (3, *before.shape[1:]))
        # The residual stream of the pruned layer, to which its FFN adds; what its FFN sees; and
        # what it should add for the dense layer's sum.
        self._residuals, self._sources, self._targets = arrays[0], arrays[1], arrays[2]

    def prepare(self) -> Tokens:
        weights = np.empty(self._targets.shape[:2], dtype=np.float32)
        for rows in self._batches():
            dense, pruned = self._streams(rows)
            residual, source = self._decoder.attention_half(self._dense_block, dense, self._dense)
            added = self._decoder.ffn_half(self._dense_block, source, self._dense)
            output = self._decoder.join(self._dense_block, residual, added, self._dense)
            weights[rows] = self._to_host(token_weights(output))
            wanted = residual + added
            residual, source = self._decoder.attention_half(self._block_shape, pruned, self._pruned)
            self._residuals[rows] = self._to_host(residual)
            self._sources[rows] = self._to_host(source)
            self._targets[rows] = self._to_host(wanted - residual)
            self._prepared(rows)
        return Tokens(self._sources, self._targets, weights)

    def _rows(self, tokens: Tokens) -> Tokens:
        d = tokens.inputs.shape[-1]
        return Tokens(
            tokens.inputs.reshape(-1, d), tokens.targets.reshape(-1, d), tokens.weights.reshape(-1)
        )

    def _block(self, x: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        return self._decoder.ffn_half(self._block_shape, x[None], {**self._pruned, **trained})[0]

    def finish(self, trained: Mapping[str, Tensor], streams: Rows) -> None:
        weights = {**self._pruned, **trained}
        for rows in self._batches():
            dense, pruned = self._streams(rows)
            trace = self._decoder.forward_layer(self._dense_block, dense, self._dense)
            streams[0, rows] = self._to_host(trace.hidden)
            if len(streams) > 1 and not self._trained:
                whole = self._stream.forward_layer(self._index, pruned, weights)
                streams[1, rows] = self._to_host(whole.hidden)
            elif len(streams) > 1:
                source, residual = (
                    self._load(part[rows]) for part in (self._sources, self._residuals)
                )
                added = self._decoder.ffn_half(self._block_shape, source, weights)
                output = self._decoder.join(self._block_shape, residual, added, weights)
                streams[1, rows] = self._to_host(output)
            self._finished(rows)


class _Whole(_Layer):
    """A layer in transformers' modules.

    What it adds to the pruned stream is trained to be what leads to the dense layer's output.
    """

    def __init__(self, job: Job, index: int, before: Rows) -> None:
        super().__init__(job, index, before)
        # What is stored behind the hidden states (keys, token ids) is nothing that is added.
        carried = 0 if job.config.generic is None else job.config.generic.carried.columns
        self._width = job.config.hidden_size - carried

    def prepare(self) -> Tokens:
        inputs = self._before[-1]
        targets = temporary_array(self._job.scratch, (*inputs.shape[:2], self._width))
        weights = np.empty(inputs.shape[:2], dtype=np.float32)
        for rows in self._batches():
            dense, pruned = self._streams(rows)
            output = self._run(dense, self._dense)
            weights[rows] = self._to_host(token_weights(output))
            targets[rows] = self._to_host((output - pruned)[..., : self._width])
            self._prepared(rows)
        return Tokens(inputs, targets, weights)

    def _rows(self, tokens: Tokens) -> Tokens:
        return tokens

    def _block(self, x: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        return (self._run(x, {**self._pruned, **trained}) - x)[..., : self._width]

    def finish(self, trained: Mapping[str, Tensor], streams: Rows) -> None:
        weights = {**self._pruned, **trained}
        for rows in self._batches():
            dense, pruned = self._streams(rows)
            streams[0, rows] = self._to_host(self._run(dense, self._dense))
            if len(streams) > 1:
                whole = self._stream.forward_layer(self._index, pruned, weights)
                streams[1, rows] = self._to_host(whole.hidden)
            self._finished(rows)

    def _run(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return self._job.dense.forward_layer(self._index, hidden, weights).hidden


def _known(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
