"""Experts that are read one at a time, each once for all micro-batches of a pass.

Run micro-batch by micro-batch, a layer would read its experts for every one of them. So the layer
runs up to its experts first, for all micro-batches, and what experts are given is kept in scratch.
Then each expert is read, and computes all of its tokens. At last the layer runs again, and its
experts' sum is what was computed. What comes before the experts runs twice; compared with reading
most of a large layer again, that is little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.models.generic.layer_tensors import ExpertMatrices, ExpertwiseLayer
from strucprune_core.models.generic.routed import NoRecord, Recorder
from strucprune_core.scratch.arrays import temporary_array

Rows = NDArray[np.float32]


@dataclass(slots=True)
class ExpertOutputs:
    """What a layer's experts are given for all n tokens, and what they give.

    Attributes:
        tokens: Their input, (n x d).
        chosen: Experts of each token, (n x k).
        gates: Their weights, (n x k).
        sums: What they put out together, (n x d).
        transfers: Counts what crosses between host and device.
        count: Tokens that are known.
        replayed: Tokens whose sums were handed out.
    """

    tokens: Rows
    chosen: NDArray[np.int64]
    gates: Rows
    sums: Rows
    transfers: Transfers
    count: int = 0
    replayed: int = 0

    def add(self, tokens: Tensor, chosen: Tensor, gates: Tensor) -> None:
        """Keep what experts are given for some more tokens.

        Raises:
            NoRecord: these are more tokens than there are.
        """
        rows = slice(self.count, self.count + len(tokens))
        if rows.stop > len(self.tokens):
            raise NoRecord("its experts are not asked for every token once")
        self.transfers.count(to_host=tokens.nbytes + chosen.nbytes + gates.nbytes)
        self.tokens[rows] = tokens.cpu().numpy()
        self.chosen[rows] = chosen.cpu().numpy()
        self.gates[rows] = gates.float().cpu().numpy()
        self.count = rows.stop

    def answer(self, tokens: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """The sums (n x d) of the n tokens that come next."""
        rows = slice(self.replayed, self.replayed + len(tokens))
        if rows.stop > self.count:
            raise RuntimeError("experts are asked for more tokens than before")
        self.replayed = rows.stop
        self.transfers.count(to_device=self.sums[rows].nbytes)
        return torch.from_numpy(self.sums[rows].copy()).to(tokens.device, tokens.dtype)


def new_outputs(room: Room, tokens: Tensor, chosen: Tensor) -> ExpertOutputs:
    """Room in scratch for all tokens of a pass, which are like these."""
    scratch, count = room.scratch, room.tokens
    width, choices = tokens.shape[-1], chosen.shape[-1]
    return ExpertOutputs(
        tokens=temporary_array(scratch, (count, width)),
        chosen=temporary_array(scratch, (count, choices), np.int64),
        gates=temporary_array(scratch, (count, choices)),
        sums=temporary_array(scratch, (count, width)),
        transfers=room.transfers,
    )


class GatheredLayer(ExpertwiseLayer):
    """A layer whose experts have computed all tokens of a pass, whose micro-batches come in order.

    Args:
        layer: The layer.
        outputs: What its experts put out.
    """

    def __init__(self, layer: ExpertwiseLayer, outputs: ExpertOutputs) -> None:
        super().__init__(layer.shapes, layer.experts, layer.read, layer.resident)
        self.outputs = outputs


@dataclass(frozen=True, slots=True)
class Room:
    """Where experts compute all tokens of a pass.

    Attributes:
        scratch: Directory for temporary files.
        tokens: Tokens of the pass.
        rows: Most tokens on the device at a time.
        load: Makes a copy on the device.
        transfers: Counts what crosses between host and device.
        safe_point: Called after each micro-batch and each expert; may raise `errors.Stopped`.
    """

    scratch: Path
    tokens: int
    rows: int
    load: Callable[[Rows], Tensor]
    transfers: Transfers
    safe_point: Callable[[], None]


def compute(module: Any, recorder: Recorder, outputs: ExpertOutputs, room: Room) -> None:
    """Let each expert compute all of its tokens, and sum up; it is read once.

    Args:
        module: The module of experts, with stand-ins for what is read.
        recorder: Computes a single expert.
        outputs: What experts are given; `sums` is filled.
        room: In which pieces.
    """
    streamed = [name for name, each in vars(module).items() if isinstance(each, ExpertMatrices)]
    count = len(vars(module)[streamed[0]])
    for expert in range(count):
        tokens, place = (outputs.chosen == expert).nonzero()
        if len(tokens):
            with _Held(module, streamed, expert):
                for start in range(0, len(tokens), room.rows):
                    part = slice(start, start + room.rows)
                    given = room.load(outputs.tokens[tokens[part]])
                    gates = room.load(outputs.gates[tokens[part], place[part]])
                    weighted = recorder.weighted(expert, given, gates)
                    room.transfers.count(to_host=weighted.nbytes)
                    outputs.sums[tokens[part]] += weighted.float().cpu().numpy()
        room.safe_point()


class _Held:
    """Inside, the matrices of one expert are read, and stand in for those of all."""

    def __init__(self, module: Any, names: Sequence[str], expert: int) -> None:
        self._attributes, self._expert = vars(module), expert
        self._plain = {name: self._attributes[name] for name in names}

    def __enter__(self) -> None:
        for name, matrices in self._plain.items():
            self._attributes[name] = {self._expert: matrices[self._expert]}

    def __exit__(self, *_: object) -> None:
        self._attributes |= self._plain
