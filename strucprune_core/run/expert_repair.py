"""Repairs a layer that has lost experts: the down matrices of those that stay are solved again.

They are fitted to what the experts of the dense layer put out in the dense model, on what the
pruned layers before make of the text. So errors of those layers are corrected as well, as far as
this layer can. What is fitted is used only if the layer's output on held-out text is nearer to the
dense one than without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.method.layer.residual import ResidualSums
from strucprune_core.method.layer.ridge import default_damping, ratio_to_energy
from strucprune_core.models.config import Experts
from strucprune_core.models.experts import experts_of
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.generic.modules import Modules
from strucprune_core.models.generic.routed import DownMatrices, NoRecord
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import tensor_name
from strucprune_core.run.artifacts import RepairValues
from strucprune_core.run.context import Job
from strucprune_core.scratch.arrays import temporary_array

Rows = NDArray[np.float32]
Weights = Mapping[str, Tensor]


class LayerRepair:
    """One layer of the dense and of the pruned model.

    Args:
        job: The job.
        pruned: The model without experts, not repaired.
        layer: Which layer.
    """

    def __init__(self, job: Job, pruned: ModelStream, layer: int) -> None:
        # In float32: what experts lack is a small difference of what they put out.
        self._dense, self._pruned = job.dense.in_float32, pruned.in_float32
        self._job, self._layer = job, layer
        self._first_held_out = job.split.train

    def plainly(self, dense: Rows, pruned: Rows, out: Rows) -> None:
        """Pass both models' hidden states, (samples x length x d), through the layer.

        Args:
            dense: The dense model's.
            pruned: The pruned model's.
            out: Filled with both outputs, (2 x samples x length x d).
        """
        self._pass(self._dense, self._weights(self._dense), dense, out[0])
        self._pass(self._pruned, self._weights(self._pruned), pruned, out[1])

    def repaired(
        self, dense: Rows, pruned: Rows, out: Rows
    ) -> tuple[RepairValues, dict[str, Tensor]]:
        """The same through the repaired layer, if it can be repaired and that helps.

        Returns:
            How it went, and the changed tensors by their names in the files.
        """
        try:
            changed = self._fitted(dense, pruned, out)
        except NoRecord as reason:
            self.plainly(dense, pruned, out)
            return RepairValues(f"not tried: {reason}"), {}
        held_out = slice(self._first_held_out, None)
        wanted, before = out[0][held_out], _error(out[0][held_out], out[1][held_out])
        weights = {**self._weights(self._pruned), **changed}
        judged = np.empty_like(wanted)
        self._pass(self._pruned, weights, pruned[held_out], judged)
        after = _error(wanted, judged)
        if before is None or after is None or not after < before:
            return RepairValues("rejected", before, after), {}
        self._pass(self._pruned, weights, pruned, out[1])
        named = {
            self._name(role): tensor.to(self._stored(role)).cpu()
            for role, tensor in changed.items()
        }
        return RepairValues("accepted", before, after), named

    def _fitted(self, dense: Rows, pruned: Rows, out: Rows) -> dict[str, Tensor]:
        """Changed tensors by role, float32, rounded as they will be stored; fills `out`."""
        weights = self._weights(self._pruned)
        wanted = self._observed(self._dense, self._weights(self._dense), dense, out[0])
        seen = self._observed(self._pruned, weights, pruned, out[1])
        seen.residual[:] = wanted.residual - seen.residual
        modules = _modules(self._pruned)
        prefix = tensor_name(self._pruned.config, self._layer, "")
        role = self._down_role(modules, prefix)
        changed: dict[str, Tensor] = {}
        with modules.down_matrices(self._layer, weights, prefix) as down:
            for expert in range(self._experts.count):
                matrix = self._changed(down, expert, seen, role, weights)
                _put(changed, weights, role, expert, matrix)
                self._job.safe_point()
        return changed

    def _changed(
        self, down: DownMatrices, expert: int, seen: _Observed, role: str, weights: Weights
    ) -> Tensor:
        """An expert's new down matrix; `seen.residual` loses what it now adds."""
        old = down.matrix(expert)
        if not torch.equal(_of_expert(weights, role, expert), old):
            raise NoRecord("its files store down matrices in a way of their own")
        tokens, place = (seen.chosen == expert).nonzero()
        of_text = tokens < self._first_held_out * seen.length
        sums = ResidualSums(
            old.shape[0 if down.transposed else 1], seen.residual.shape[1], old.device
        )
        for rows in self._chunks(int(of_text.sum())):
            sums.add(*self._given(down, expert, seen, tokens[of_text][rows], place[of_text][rows]))
        correction = sums.correction(default_damping(sums.tokens))
        change = correction if down.transposed else correction.T
        new = (old.double() + change).to(self._stored(role)).float()
        added = (new - old) if down.transposed else (new - old).T
        for rows in self._chunks(len(tokens)):
            inputs, _ = self._given(down, expert, seen, tokens[rows], place[rows])
            seen.residual[tokens[rows]] -= self._pruned.to_host(inputs @ added)
        return new

    def _given(
        self,
        down: DownMatrices,
        expert: int,
        seen: _Observed,
        tokens: NDArray[np.int64],
        place: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        """Weighted activations (n x f) of an expert, and what the layer lacks there (n x d)."""
        hidden = self._pruned.load(seen.tokens[tokens])
        gates = self._pruned.load(seen.gates[tokens, place])
        activations = down.activations(expert, hidden) * gates[:, None]
        return activations, self._pruned.load(seen.residual[tokens])

    def _observed(
        self, stream: ModelStream, weights: Weights, hidden: Rows, out: Rows
    ) -> _Observed:
        """Pass hidden states through a layer, and keep what its experts are given and give."""
        count, length = hidden.shape[0] * hidden.shape[1], hidden.shape[1]
        kept: _Observed | None = None
        at = 0

        def seen(tokens: Tensor, chosen: Tensor, gates: Tensor, result: Tensor) -> None:
            nonlocal kept, at
            if kept is None:
                kept = self._new(count, length, tokens.shape[-1], chosen.shape[-1])
            rows = slice(at, at + len(tokens))
            kept.tokens[rows] = self._pruned.to_host(tokens)
            kept.chosen[rows] = self._pruned.to_host(chosen)
            kept.gates[rows] = self._pruned.to_host(gates.float())
            kept.residual[rows] = self._pruned.to_host(result.reshape(len(tokens), -1))
            at = rows.stop

        with _modules(stream).observing(self._layer, seen):
            self._pass(stream, weights, hidden, out)
        if kept is None or at != count:
            raise NoRecord("its experts are not asked for every token once")
        return kept

    def _new(self, count: int, length: int, width: int, chosen: int) -> _Observed:
        scratch = self._job.scratch
        return _Observed(
            length=length,
            tokens=temporary_array(scratch, (count, width)),
            chosen=temporary_array(scratch, (count, chosen), np.int64),
            gates=temporary_array(scratch, (count, chosen)),
            residual=temporary_array(scratch, (count, width)),
        )

    def _pass(self, stream: ModelStream, weights: Weights, hidden: Rows, out: Rows) -> None:
        sequences, length = hidden.shape[:2]
        for rows in micro_batches(sequences, length, self._job.tiles.micro_batch_tokens):
            output = stream.run_layer(self._layer, weights, hidden[rows]).hidden
            out[rows] = self._pruned.to_host(output)
            self._job.safe_point()

    def _chunks(self, count: int) -> list[slice]:
        """Rows of as many tokens as a micro-batch has."""
        step = self._job.tiles.micro_batch_tokens
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def _weights(self, stream: ModelStream) -> dict[str, Tensor]:
        return stream.whole_layer(self._layer)

    @property
    def _experts(self) -> Experts:
        experts = experts_of(self._pruned.config, self._layer)
        assert experts is not None  # noqa: S101 - asked for layers with experts alone
        return experts

    def _down_role(self, modules: Modules, prefix: str) -> str:
        """Name within the layer of the down matrices: of one expert (`{}`), or of all of them."""
        names = (*self._experts.own, *(name for name, _ in self._experts.sliced))
        found = [
            name
            for name in names
            if modules.names.parameter_of(prefix + name.format(0))[0].endswith(
                f".{DownMatrices.parameter}"
            )
        ]
        if len(found) != 1:
            raise NoRecord("its files store down matrices in a way of their own")
        return found[0]

    def _name(self, role: str) -> str:
        return tensor_name(self._pruned.config, self._layer, role)

    def _stored(self, role: str) -> torch.dtype:
        """The dtype in which a tensor is stored; that of the first expert's for all."""
        return TORCH_DTYPES[self._job.stored_dtype(self._name(role.format(0)))]


@dataclass(frozen=True, slots=True)
class _Observed:
    """What experts of a layer are given and give, for all n tokens.

    Attributes:
        length: Tokens of a sequence.
        tokens: Their input, (n x d).
        chosen: Experts of each token, (n x k).
        gates: Their weights, (n x k).
        residual: Their sum, (n x d); later what it lacks.
    """

    length: int
    tokens: Rows
    chosen: NDArray[np.int64]
    gates: Rows
    residual: Rows


def _modules(stream: ModelStream) -> Modules:
    if stream.modules is None:
        raise TypeError("not a generic model")
    return stream.modules


def _of_expert(weights: Weights, role: str, expert: int) -> Tensor:
    """An expert's part of the tensors of a layer."""
    return weights[role.format(expert)] if "{}" in role else weights[role][expert]


def _put(
    changed: dict[str, Tensor], weights: Weights, role: str, expert: int, matrix: Tensor
) -> None:
    """Set an expert's part."""
    if "{}" in role:
        changed[role.format(expert)] = matrix
        return
    if role not in changed:
        changed[role] = weights[role].clone()
    changed[role][expert] = matrix


def _error(wanted: Rows, found: Rows) -> float | None:
    """Squared error of a layer's output relative to its energy."""
    error = float(np.square(wanted - found, dtype=np.float64).sum())
    return ratio_to_energy(error, float(np.square(wanted, dtype=np.float64).sum()))
