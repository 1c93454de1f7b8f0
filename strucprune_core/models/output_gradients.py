"""Gradients of losses at the model's output, in tiles of the vocabulary like the losses themselves.

A backward pass through a streamed model begins here; `models.backward` continues it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import Head, LogPartition


def loss_gradients(
    stream: ModelStream,
    hidden: NDArray[np.float32],
    targets: NDArray[np.int32],
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Gradient of each target's cross-entropy (nats) at the hidden state it is predicted from.

    With y the normed state, h_v the head's rows and z_v = y . h_v, the loss is logZ - z_target, and
    its gradient at y is E_p[h_v] - h_target: the expectation is accumulated along with logZ, and
    shrinks with it when the maximum moves. A soft cap multiplies each row by its slope. From y the
    gradient goes back through the final norm by autograd.

    Args:
        stream: The model.
        hidden: Output of the last layer, before the final norm, (n x d).
        targets: Token that follows each position, (n,).
        tick: Called after every tile.

    Returns:
        (n x d).
    """
    head = Head(stream)
    chunks = list(head.chunks(len(targets)))
    outputs = [head.output(head.load(hidden[start:stop])) for start, stop in chunks]
    partitions = [LogPartition(stop - start, stream.device) for start, stop in chunks]
    expected = [torch.zeros_like(output) for output in outputs]
    chosen = [torch.zeros_like(output) for output in outputs]
    wanted = torch.from_numpy(targets.astype(np.int64)).to(stream.device)
    for first_row, rows in head.tiles():
        for number, (start, stop) in enumerate(chunks):
            logits = head.capped(outputs[number] @ rows.T)
            slope = head.slope(logits)
            column = wanted[start:stop] - first_row
            inside = ((column >= 0) & (column < len(rows))).nonzero().flatten()
            at = column[inside]
            own = slope if isinstance(slope, float) else slope[inside, at, None]
            chosen[number][inside] = rows[at] * own
            weights, shrink = partitions[number].add(logits)
            expected[number] *= shrink[:, None]
            expected[number] += weights.mul_(slope) @ rows
        tick()
    gradients = np.empty_like(hidden)
    for number, (start, stop) in enumerate(chunks):
        mean = expected[number] / partitions[number].total[:, None]
        with torch.enable_grad():
            state = head.load(hidden[start:stop]).requires_grad_()
            (gradient,) = torch.autograd.grad(
                head.output(state), state, (mean - chosen[number]).float()
            )
        gradients[start:stop] = stream.to_host(gradient)
    return gradients


def kl_gradients(
    stream: ModelStream,
    reference: NDArray[np.float32],
    hidden: NDArray[np.float32],
    tick: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """KL(reference || hidden) of each token's next-token distributions, and its gradient.

    With p of the reference and q of `hidden`, the gradient at the normed state is E_q[h_v] -
    E_p[h_v], h_v the head's rows: both expectations are accumulated along with their log-partitions
    as in `loss_gradients`, where p is 1 at the target.

    Args:
        stream: The model.
        reference: Last layer's output of the dense model, (n x d).
        hidden: The same of another model with the same final norm and head, (n x d).
        tick: Called after every tile.

    Returns:
        (n,) nats, and the gradient at `hidden`, (n x d).
    """
    head = Head(stream)
    chunks = list(head.chunks(len(hidden)))
    pairs = [_Pair(head, reference[a:b], hidden[a:b]) for a, b in chunks]
    for _, rows in head.tiles():
        for pair in pairs:
            pair.add(rows)
        tick()
    losses = np.concatenate([stream.to_host(pair.divergences()) for pair in pairs])
    return losses, np.concatenate([stream.to_host(pair.gradient()) for pair in pairs])


class _Pair:
    """KL(p || q) of some tokens and its gradient, accumulated over the head's tiles."""

    def __init__(
        self, head: Head, reference: NDArray[np.float32], hidden: NDArray[np.float32]
    ) -> None:
        self._head, self._hidden = head, hidden
        self._wanted = head.output(head.load(reference))
        self._output = head.output(head.load(hidden))
        device = self._output.device
        self._p, self._q = (LogPartition(len(hidden), device) for _ in range(2))
        self._gap = torch.zeros(len(hidden), dtype=torch.float64, device=device)
        # The head's rows, weighted by p and by q.
        self._by_p, self._by_q = (torch.zeros_like(self._output) for _ in range(2))

    def add(self, rows: Tensor) -> None:
        wanted = self._head.capped(self._wanted @ rows.T)
        logits = self._head.capped(self._output @ rows.T)
        slope = self._head.slope(logits)
        weights, shrink = self._p.add(wanted)
        gap = (wanted - logits).mul_(weights).sum(-1).double()
        self._gap = self._gap * shrink + gap
        self._by_p = self._by_p * shrink[:, None].float() + weights.mul_(slope) @ rows
        weights, shrink = self._q.add(logits)
        self._by_q = self._by_q * shrink[:, None].float() + weights.mul_(slope) @ rows

    def divergences(self) -> Tensor:
        """(n,) float64."""
        return self._gap / self._p.total - self._p.value() + self._q.value()

    def gradient(self) -> Tensor:
        """At the hidden states, (n x d) float32: back through the final norm by autograd."""
        means = (
            by.double() / partition.total[:, None]
            for by, partition in ((self._by_q, self._q), (self._by_p, self._p))
        )
        at_output = next(means) - next(means)
        with torch.inference_mode(mode=False), torch.enable_grad():
            state = self._head.load(self._hidden).requires_grad_()
            (at_state,) = torch.autograd.grad(self._head.output(state), state, at_output.float())
        return at_state
