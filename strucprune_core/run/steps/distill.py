"""`distill.k`: some steps of training the pruned model as a whole, one layer in memory at a time.

A step is a forward pass, which leaves every layer's input in a scratch file, the loss at the end,
and a backward pass. There each layer is read, run again with gradients on, updated and written.
Matrices in training and their moments lie in a file per layer (`run.layer_states`); everything else
of a layer (norms, biases, routers) stays what it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.training.distillation import DistillationStatus, has_diverged
from strucprune_core.method.training.schedule import rate_factor
from strucprune_core.models.backward import layer_gradients
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.layers_ahead import Alive
from strucprune_core.models.output_gradients import kl_gradients
from strucprune_core.models.pruned_weights import SiteSolution, as_stored
from strucprune_core.models.tensors import layer_tensors, tensor_name
from strucprune_core.models.tiles import HOLDOUT_TOKENS
from strucprune_core.models.vocabulary import embed, kl_divergences
from strucprune_core.plan.graph import Unit, distill_units
from strucprune_core.run.artifacts import Capture, Distill, DistillValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.layer_states import LayerStates
from strucprune_core.run.measured_site import Solved
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.solutions import other_tensors, solution_tensors
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.arrays import temporary_array
from strucprune_core.spec import DistillationSpec

Rows = NDArray[np.float32]


@torch.no_grad()
def distill(job: Job, unit: Unit, draft: Draft) -> None:
    """Train for the unit's steps. Write a file per layer: its state, or at the end the result."""
    spec = job.spec.pruning.distill
    assert spec is not None  # noqa: S101 - the graph has this unit only if there is one
    units = distill_units(spec.steps)
    before = [job.units.values(Distill(number)) for number in range(unit.index)]
    model = _Model(job, unit.index, draft)
    start = before[-1].kl_before if before else model.held_out_divergence()
    losses, diverged = _train(job, model, spec, units[unit.index], before)
    if unit.index + 1 < len(units):
        model.hand_on()
        draft.record(DistillValues(losses, diverged, start))
        return
    after = None if diverged else model.held_out_divergence()
    status = _status(start, after)
    model.finish(accepted=status is DistillationStatus.ACCEPTED)
    draft.record(DistillValues(losses, diverged, start, after, status.value))


def _train(
    job: Job, model: _Model, spec: DistillationSpec, steps: range, before: list[DistillValues]
) -> tuple[list[float], bool]:
    """Losses of the steps, and whether training has diverged in them or before."""
    first_loss = next((loss for values in before for loss in values.losses), None)
    losses: list[float] = []
    diverged = bool(before and before[-1].diverged)
    for step in steps:
        if diverged:
            break
        loss = model.train(_batch(job, spec, step), step, spec, first_loss)
        diverged = has_diverged(loss, loss if first_loss is None else first_loss)
        if math.isfinite(loss):
            losses.append(loss)
            first_loss = loss if first_loss is None else first_loss
    return losses, diverged


def _status(before: float, after: float | None) -> DistillationStatus:
    """What becomes of the trained weights, by held-out divergence; None if training diverged."""
    if after is None:
        return DistillationStatus.DIVERGED
    return DistillationStatus.ACCEPTED if after < before else DistillationStatus.REJECTED


def _batch(job: Job, spec: DistillationSpec, step: int) -> NDArray[np.int64]:
    """Sequences of one step: each once before any comes again, from the job's seed."""
    count = job.split.train
    size = min(spec.batch_sequences, count)
    epoch, place = divmod(step, count // size)
    draw = np.random.Generator(np.random.PCG64([job.spec.calibration.seed, epoch]))
    return np.sort(draw.permutation(count)[place * size : (place + 1) * size])


class _Model:
    """The pruned model in training, in files."""

    def __init__(self, job: Job, number: int, draft: Draft) -> None:
        """Go on from unit `number` - 1."""
        self._job, self._this, self._draft = job, Distill(number), draft
        self._pruned = PrunedModel(job)
        self._config = self._pruned.config
        self._given = job.stream(self._config, self._pruned.repaired_source())
        self._tokens = job.units.array(Tokens().calibration)
        self._dense = job.units.array(Capture(self._config.layers - 1).hidden)
        self._states = LayerStates(job, self._this, draft, self._given)

    def train(
        self, rows: NDArray[np.int64], step: int, spec: DistillationSpec, first_loss: float | None
    ) -> float:
        """One step on some sequences; its loss. Nothing is updated if that says divergence."""
        layers = self._config.layers
        with self._forward(rows) as states:
            losses, flow = kl_gradients(
                self._job.dense, self._flat(self._dense[rows]), self._flat(states[-1]), self._alive
            )
            loss = float(losses.mean())
            if has_diverged(loss, loss if first_loss is None else first_loss):
                return loss
            rate = spec.learning_rate * rate_factor(step, spec.steps)
            flow = (flow / np.float32(len(losses))).reshape(states[-1].shape)
            for layer in reversed(range(layers)):
                flow = self._back(layer, states[layer], flow, step + 1, rate)
                self._job.tick(2 * layers - layer, 2 * layers)
        return loss

    def held_out_divergence(self) -> float:
        """Mean KL divergence from the dense model, nats per token."""
        first, length = self._job.split.train, self._tokens.shape[1]
        count = min(self._job.split.holdout, max(1, HOLDOUT_TOKENS // length))
        rows = np.arange(first, first + count)
        with self._forward(rows) as states:
            dense, last = self._flat(self._dense[rows]), self._flat(states[-1])
            (divergence,) = kl_divergences(self._job.dense, dense, [last], self._alive)
        return divergence

    def hand_on(self) -> None:
        """Leave a state of every layer for the next unit."""
        self._states.keep_all()

    def finish(self, *, accepted: bool) -> None:
        """Write the result of every layer, trained if that is accepted, and leave no state."""
        matrices = self._states.matrices if accepted else self._states.given_matrices
        for layer in range(self._config.layers):
            file = self._draft.path(self._this.distilled(layer).name)
            save_bundle(file, self._as_solution(layer, matrices(layer)))
            self._states.discard(layer)

    @contextlib.contextmanager
    def _forward(self, rows: NDArray[np.int64]) -> Iterator[Rows]:
        """Every layer's input, and the last one's output, (layers + 1 x sequences x length x d)."""
        layers, tokens = self._config.layers, np.asarray(self._tokens[rows])
        shape = (layers + 1, *tokens.shape, self._config.hidden_size)
        states = temporary_array(self._job.scratch, shape)
        embed(self._job.dense, tokens, states[0])
        for layer, weights in self._given.in_turn(range(layers), self._read):
            for batch in self._batches(len(rows)):
                x = self._on_device(states[layer, batch])
                output = self._given.forward_layer(layer, x, weights).hidden
                states[layer + 1, batch] = self._given.to_host(output)
            del weights
            self._job.tick(layer, 2 * layers)
        yield states

    def _back(self, layer: int, inputs: Rows, flow: Rows, step: int, rate: float) -> Rows:
        """Lead the gradient back through a layer, and update it."""
        states = self._states.load(layer)
        weights = self._weights(layer, {role: state.weight for role, state in states.items()})
        total = {role: torch.zeros_like(state.weight) for role, state in states.items()}
        before = np.empty_like(flow)
        for batch in self._batches(len(flow)):
            at_input, gradients = layer_gradients(
                self._given,
                layer,
                weights,
                list(states),
                self._on_device(inputs[batch]),
                self._on_device(flow[batch]),
            )
            before[batch] = self._given.to_host(at_input)
            for role, gradient in gradients.items():
                total[role] += gradient
        for role, state in states.items():
            state.update(total[role], step, rate)
        self._states.save(layer, states)
        return before

    def _read(self, layer: int, alive: Alive) -> dict[str, Tensor]:
        """All of a layer's tensors, to run forward."""
        alive()
        return self._weights(layer, self._states.matrices(layer))

    def _weights(self, layer: int, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of a layer's tensors: its matrices in training, and the rest as it was."""
        rest = set(layer_tensors(self._config, layer)) - set(matrices)
        return matrices | {
            role: self._given.tensor(tensor_name(self._config, layer, role)) for role in rest
        }

    def _as_solution(self, layer: int, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """A layer's solution file: what belongs to its sites, and the other matrices."""
        solutions: Solved = []
        others = {role: weight.cpu() for role, weight in trained.items()}
        self._job.transfers.count(to_host=sum(weight.nbytes for weight in trained.values()))
        for site in self._pruned.sites(layer):
            solution = SiteSolution(
                self._pruned.repaired(layer, site).kept,
                as_stored(others.pop(site.output.role), site),  # Turning twice gives (d x columns).
                {part.role: others.pop(part.role) for part in site.coupled if part.role in trained},
            )
            solutions.append((site, solution))
        return solution_tensors(solutions) | other_tensors(others)

    def _batches(self, sequences: int) -> Iterator[slice]:
        length = self._tokens.shape[1]
        return micro_batches(sequences, length, self._job.tiles.micro_batch_tokens)

    def _on_device(self, rows: Rows) -> Tensor:
        return self._given.load(rows)

    def _flat(self, rows: Rows) -> Rows:
        return np.asarray(rows).reshape(-1, self._config.hidden_size)

    def _alive(self) -> None:
        layers = self._config.layers
        self._job.tick(layers, 2 * layers)
