"""`recover.l`: pass the calibration text through layer l once more and train what was solved.

Two streams of hidden states go through the layers: the dense model's, and what the pruned layers
make of the text. In mode `sequential` a pruned layer sees the second and is trained to lead it back
to the first; in mode `parallel` there is only the first. Memory holds one layer; streams are files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.gram import token_weights
from strucprune_core.method.training.recovery import RecoveryOptions, RecoveryResult, Tokens
from strucprune_core.method.training.recovery import recover as recover_block
from strucprune_core.models.decoder import Decoder
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.pruned_weights import SiteSolution, as_stored, prune_layer
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Recover, RecoverValues, Solve
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import Solved
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.solutions import load_solution, solution_tensors
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import new_array, temporary_array

Rows = NDArray[np.float32]


def recover(job: Job, unit: Unit, draft: Draft) -> None:
    """Train one layer. Write its solution, and the streams that enter the next layer."""
    before = np.asarray(job.units.array(Recover(unit.index).entering))
    arrays = temporary_array(job.scratch, (3, *before.shape[1:]))
    with torch.no_grad():
        layer = _Layer(job, unit.index, before)
        residuals, sources, targets = arrays[0], arrays[1], arrays[2]
        weights = layer.prepare(residuals, sources, targets)
        result = layer.train(sources, targets, weights)
        save_bundle(draft.path(Recover.solution), layer.solution(result.weights))
        if unit.index + 1 < job.config.layers:
            streams = new_array(draft.path(Recover.streams), before.shape)
            layer.finish(residuals, sources, result.weights, streams)
            streams.flush()
    draft.record(
        RecoverValues(result.status.value, _known(result.error_before), _known(result.error_after))
    )


class _Layer:
    """One layer, dense and pruned, in two halves: attention, which stands, and the FFN to train."""

    def __init__(self, job: Job, index: int, before: Rows) -> None:
        """`before`: the streams that enter the layer, (streams x samples x length x d)."""
        self._job, self._index, self._before = job, index, before
        self._decoder = Decoder(job.config)
        self._dense_block = job.config.blocks[index]
        self._block = PrunedModel(job).config.blocks[index]
        file = job.units.path(Solve(index).solution)
        self._solved = [(site, load_solution(file, site)) for site in job.sites(index)]
        self._dense = job.dense.whole_layer(index)
        self._pruned = prune_layer(self._dense, self._solved)
        self._trained = [
            tensor.role
            for site in job.sites(index)
            if site.kind == "ffn"
            for tensor in (site.output, *site.coupled)
            if tensor.role.endswith(".weight")
        ]

    def prepare(self, residuals: Rows, sources: Rows, targets: Rows) -> NDArray[np.float32]:
        """Run the halves that stand. Fills (samples x length x d) each; gives token weights.

        Args:
            residuals: The residual stream of the pruned layer, to which its FFN adds.
            sources: What its FFN sees.
            targets: What it should add for the dense layer's sum.
        """
        weights = np.empty(targets.shape[:2], dtype=np.float32)
        for rows in self._batches():
            dense, pruned = self._streams(rows)
            residual, source = self._decoder.attention_half(self._dense_block, dense, self._dense)
            added = self._decoder.ffn_half(self._dense_block, source, self._dense)
            output = self._decoder.join(self._dense_block, residual, added, self._dense)
            weights[rows] = token_weights(output).cpu().numpy()
            wanted = residual + added
            residual, source = self._decoder.attention_half(self._block, pruned, self._pruned)
            residuals[rows] = residual.cpu().numpy()
            sources[rows] = source.cpu().numpy()
            targets[rows] = (wanted - residual).cpu().numpy()
            self._job.tick(rows.stop, 3 * len(weights))
        return weights

    def train(self, sources: Rows, targets: Rows, weights: NDArray[np.float32]) -> RecoveryResult:
        """Train the FFN on what `prepare` filled in."""
        steps = self._steps()
        done = iter(range(1, steps + 1))

        def block(x: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
            return self._decoder.ffn_half(self._block, x[None], {**self._pruned, **trained})[0]

        def tokens(sequences: slice) -> Tokens:
            d = sources.shape[-1]
            return Tokens(
                sources[sequences].reshape(-1, d),
                targets[sequences].reshape(-1, d),
                weights[sequences].reshape(-1),
            )

        train = self._job.split.train
        return recover_block(
            block,
            {role: self._pruned[role] for role in self._trained},
            tokens(slice(0, train)),
            tokens(slice(train, None)),
            RecoveryOptions(steps=steps, seed=self._index),
            lambda: self._job.tick(steps + next(done), 3 * steps),
        )

    def solution(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The layer's solution file with the FFN's weights as they are now."""
        solutions: Solved = []
        for site, solution in self._solved:
            if site.kind == "ffn":
                stored = trained[site.output.role]
                roles = [tensor.role for tensor in site.coupled if tensor.role in trained]
                solution = SiteSolution(
                    solution.kept,
                    as_stored(stored, site).cpu(),  # Turning twice gives (d x columns) again.
                    {role: trained[role].cpu() for role in roles},
                )
            solutions.append((site, solution))
        return solution_tensors(solutions)

    def finish(
        self, residuals: Rows, sources: Rows, trained: Mapping[str, Tensor], streams: Rows
    ) -> None:
        """Write the streams that leave the layer."""
        weights = {**self._pruned, **trained}
        for rows in self._batches():
            dense, _ = self._streams(rows)
            trace = self._decoder.forward_layer(self._dense_block, dense, self._dense)
            streams[0, rows] = trace.hidden.cpu().numpy()
            if len(streams) > 1:
                added = self._decoder.ffn_half(self._block, self._load(sources[rows]), weights)
                residual = self._load(residuals[rows])
                output = self._decoder.join(self._block, residual, added, weights)
                streams[1, rows] = output.cpu().numpy()
            self._job.tick(2 * streams.shape[1] + rows.stop, 3 * streams.shape[1])

    def _batches(self) -> Iterator[slice]:
        _, samples, length, _ = self._before.shape
        return micro_batches(samples, length, self._job.tiles.micro_batch_tokens)

    def _streams(self, rows: slice) -> tuple[Tensor, Tensor]:
        """What the dense and what the pruned layer sees."""
        dense = self._load(self._before[0, rows])
        return dense, dense if len(self._before) == 1 else self._load(self._before[1, rows])

    def _load(self, rows: Rows) -> Tensor:
        return torch.from_numpy(np.array(rows)).to(self._job.device)

    def _steps(self) -> int:
        spec = self._job.spec.pruning.recover
        return 0 if spec is None else spec.steps


def _known(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
