"""Recovery of a pruned block: a few steps of Adam towards the dense block's outputs.

    loss = sum_t w_t ||block(x_t; W) - y_t||^2 / sum_t w_t ||y_t||^2

`ridge` repairs only the down projection. Recovery also moves the kept rows of gate and up, through
the nonlinearity. It is layer-wise distillation of outputs with Adam (Kingma and Ba 2015). Adam's
step does not depend on the scale of the loss, so a rate relative to each matrix, 0.01 rms(W), means
the same in every layer of every model. The result is used only if the error on held-out tokens
falls.

A block is one layer, so memory stays at one layer: the trained matrices five times (the given ones,
the trained ones, gradients, two moments) plus the activations of one batch. Rows are read from
arrays that may be memory-mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.method.layer.ridge import ratio_to_energy
from strucprune_core.method.training.schedule import RECOVERY_BATCH_TOKENS, rate_factor

# Far below any gradient of a relative loss. Otherwise it would damp the steps of a very wide
# matrix, whose single entries matter little.
ADAM_EPS = 1e-15
DIVERGED_LOSS = 10.0  # Times the held-out error at the start (at least 1, the error of no output).

Block = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Outputs (n x d') of a block from inputs (n x d) and its weights by role; differentiable.

A block that mixes tokens takes whole sequences: (sequences x length x d).
"""

Load = Callable[[NDArray[np.float32]], Tensor]
"""Makes a copy of an array on the device."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Inputs of a block, and the outputs that it should give.

    Attributes:
        inputs: (n x d) float32, or (sequences x length x d); may be memory-mapped.
        targets: The dense block's outputs, (n x d') or (sequences x length x d') float32; may be
            memory-mapped.
        weights: Token weights, (n,) or (sequences x length) float32.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]

    def rows_of(self, tokens: int) -> int:
        """Rows (tokens, or whole sequences) that hold so many tokens; at least one."""
        return max(1, tokens * len(self.weights) // max(1, self.weights.size))


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How to train.

    Attributes:
        steps: Steps of Adam.
        batch_tokens: Tokens of one step; at least a sequence of a block that mixes tokens.
        learning_rate: Highest rate, relative to rms(W) of each matrix.
        betas: Of Adam.
        seed: Of the order of batches.
    """

    steps: int = 80
    batch_tokens: int = RECOVERY_BATCH_TOKENS
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    seed: int = 0


class RecoveryStatus(StrEnum):
    """How a recovery ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"  # The held-out error did not fall, or is unknown.
    DIVERGED = "diverged"  # The loss exploded or was not a number.


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """Weights, and how the training ended.

    Attributes:
        weights: Trained ones if accepted; otherwise the given tensors themselves.
        status: How it ended.
        error_before: Weighted relative error on the held-out tokens; None if unknown (see
            `held_out_error`).
        error_after: The same of the trained weights, also if they were not accepted; NaN if
            training diverged.
        losses: Loss of each step's batch.
    """

    weights: dict[str, Tensor]
    status: RecoveryStatus
    error_before: float | None
    error_after: float | None
    losses: tuple[float, ...]

    @property
    def accepted(self) -> bool:
        """Whether `weights` are trained ones."""
        return self.status is RecoveryStatus.ACCEPTED


def recover(
    block: Block,
    weights: Mapping[str, Tensor],
    train: Tokens,
    holdout: Tokens,
    options: RecoveryOptions | None = None,
    tick: Callable[[], None] = lambda: None,
    load: Load | None = None,
) -> RecoveryResult:
    """Train a block's weights to reproduce given outputs.

    The same arguments give the same bits on the same machine with the same number of threads.

    Args:
        block: The block; tensors that it closes over are not trained, and must not be inference
            tensors (`torch.inference_mode` forbids a gradient through them).
        weights: All trained weights by role, float32, on the device to work on. Not modified.
        train: Tokens to train on.
        holdout: Tokens that decide whether the result is accepted.
        options: How to train.
        tick: Called after each step: a safe point to stop at.
        load: Makes a copy of rows on the device of the weights.
    """
    options = options or RecoveryOptions()
    load = load or _loads_to(weights)
    # Steps run under inference mode; inside, gradients are needed and clones are plain tensors.
    with torch.inference_mode(False), torch.enable_grad():
        trained = {role: weight.detach().clone() for role, weight in weights.items()}
        before = held_out_error(block, trained, holdout, options.batch_tokens, load)
        limit = DIVERGED_LOSS * max(1.0, before or 0.0)
        losses, finished = _train(block, trained, train, options, limit, tick, load)
        after = (
            held_out_error(block, trained, holdout, options.batch_tokens, load)
            if finished
            else math.nan
        )
    if after is not None and before is not None and after < before:
        result = {role: weight.detach() for role, weight in trained.items()}
        return RecoveryResult(result, RecoveryStatus.ACCEPTED, before, after, losses)
    rejected = after is None or math.isfinite(after)
    status = RecoveryStatus.REJECTED if rejected else RecoveryStatus.DIVERGED
    return RecoveryResult(dict(weights), status, before, after, losses)


def _loads_to(weights: Mapping[str, Tensor]) -> Load:
    device = next(iter(weights.values())).device
    return lambda rows: torch.from_numpy(rows).to(device)


def held_out_error(
    block: Block,
    weights: Mapping[str, Tensor],
    tokens: Tokens,
    batch_tokens: int,
    load: Load | None = None,
) -> float | None:
    """Weighted squared error of the block's outputs relative to the targets' energy.

    None if it is unknown: there are no tokens, or the targets are zero and the outputs are not.
    """
    if not len(tokens.weights):
        return None
    load = load or _loads_to(weights)
    error = energy = 0.0
    with torch.no_grad():
        step = tokens.rows_of(batch_tokens)
        for start in range(0, len(tokens.weights), step):
            rows = slice(start, start + step)
            inputs, targets, token_weights = _rows(tokens, rows, load)
            squares = (block(inputs, weights) - targets).square().sum(-1)
            error += float((squares * token_weights).sum(dtype=torch.float64))
            squares = targets.square().sum(-1)
            energy += float((squares * token_weights).sum(dtype=torch.float64))
    return ratio_to_energy(error, energy)


def _train(
    block: Block,
    weights: dict[str, Tensor],
    tokens: Tokens,
    options: RecoveryOptions,
    limit: float,
    tick: Callable[[], None],
    load: Load,
) -> tuple[tuple[float, ...], bool]:
    """Train in place; the losses, and False if one was above the limit or not a number."""
    energy = _mean_energy(tokens, options.batch_tokens)
    rates = {role: _highest_rate(weight, options) for role, weight in weights.items()}
    groups: list[dict[str, Any]] = [
        {"params": [weight.requires_grad_()], "lr": rates[role]} for role, weight in weights.items()
    ]
    # Not `foreach`: that is faster on a GPU, but holds copies of all matrices at once.
    adam = torch.optim.Adam(groups, betas=options.betas, eps=ADAM_EPS, foreach=False)
    losses: list[float] = []
    for step, rows in enumerate(islice(_batches(tokens, options), options.steps)):
        inputs, targets, token_weights = _rows(tokens, rows, load)
        squares = (block(inputs, weights) - targets).square().sum(-1)
        loss = (squares * token_weights).mean() / energy
        losses.append(float(loss.detach()))
        if not losses[-1] <= limit:  # Also when not a number.
            return tuple(losses), False
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group, rate in zip(adam.param_groups, rates.values(), strict=True):
            group["lr"] = rate * rate_factor(step, options.steps)
        adam.step()
        tick()
    return tuple(losses), True


def _highest_rate(weight: Tensor, options: RecoveryOptions) -> float:
    return options.learning_rate * float(weight.square().mean().sqrt())


def _batches(tokens: Tokens, options: RecoveryOptions) -> Iterator[NDArray[np.int64]]:
    """Rows of one batch after another: each token once before any comes again."""
    draw = torch.Generator().manual_seed(options.seed)
    count = len(tokens.weights)
    size = min(tokens.rows_of(options.batch_tokens), count)
    while True:
        order = torch.randperm(count, generator=draw).numpy()
        for start in range(0, count - size + 1, size):
            yield np.sort(order[start : start + size])  # In file order, for fewer seeks.


def _mean_energy(tokens: Tokens, batch_tokens: int) -> float:
    """Mean of w_t ||y_t||^2 over all tokens; 1 if there is none, so that a loss stays finite."""
    total = 0.0
    step = tokens.rows_of(batch_tokens)
    for start in range(0, len(tokens.weights), step):
        rows = slice(start, start + step)
        squares = np.square(tokens.targets[rows], dtype=np.float64).sum(-1)
        total += float((squares * tokens.weights[rows]).sum())
    return total / tokens.weights.size or 1.0


def _rows(
    tokens: Tokens, rows: slice | NDArray[np.int64], load: Load
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, targets, weights = (
        load(np.array(array[rows], dtype=np.float32))
        for array in (tokens.inputs, tokens.targets, tokens.weights)
    )
    return inputs, targets, weights
