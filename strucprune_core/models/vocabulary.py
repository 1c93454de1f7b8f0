"""Embedding and head of the model, in tiles of the vocabulary: logits are never held whole.

Logits z over V tokens are computed tile by tile. The log-partition is accumulated as a running
maximum m and a running sum of exp(z - m) (the online softmax of Milakov & Gimelshein 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.models.norms import normalise
from strucprune_core.models.streaming import Hidden, ModelStream

if TYPE_CHECKING:
    from strucprune_core.models.generic.modules import Modules


@torch.inference_mode()
def embed(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    out: Hidden,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """The first layer's input: token embeddings, scaled or projected, with learned positions.

    Args:
        stream: The model.
        tokens: Token ids, (sequences x length).
        out: Filled with the embeddings, (sequences x length x d); may be memory-mapped, or on
            the device.
        tick: Called after every tile of the table that is used: a safe point to stop at.
    """
    flat = _flat(out)
    embed_blocks(stream, tokens.reshape(-1), [tokens.shape], flat, tick)


def _flat(states: Hidden) -> Hidden:
    """The same numbers by token, (n x d). Never a copy: what is filled in must be `states`."""
    if isinstance(states, Tensor):
        return states.view(-1, states.shape[-1])
    flat = states.view()
    flat.shape = (-1, states.shape[-1])
    return flat


@torch.inference_mode()
def embed_blocks(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    shapes: Sequence[tuple[int, ...]],
    out: Hidden,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """The same of sequences of several lengths, with one pass through the table.

    Args:
        stream: The model.
        tokens: Token ids of all blocks, one after another, (n,).
        shapes: Of each block, (sequences, length).
        out: Filled with the embeddings, (n x d); may be memory-mapped, or on the device.
        tick: Called after every tile of the table that is used.
    """
    if stream.modules is not None:
        _embed_generic(stream, stream.modules, tokens, shapes, out, tick)
        return
    names = stream.config.names
    into = None if names.project_in is None else stream.tensor(names.project_in)
    for where, rows in _look_up(stream, tokens):
        stream.put(out, where, rows if into is None else rows @ into.T)
        del rows
        tick()
    if names.positions is not None:
        _add_positions(stream, names.positions, shapes, out)


def _add_positions(
    stream: ModelStream,
    name: str,
    shapes: Sequence[tuple[int, ...]],
    out: Hidden,
) -> None:
    """Add rows of the table of learned positions, a part of each block's sequences at a time."""
    for part, (sequences, length) in _blocks(shapes):
        block = out[part].reshape(sequences, length, -1)
        for start in range(0, length, stream.tiles.head_tokens):
            stop = min(start + stream.tiles.head_tokens, length)
            first = stream.config.position_offset
            if isinstance(block, Tensor):
                block[:, start:stop] += stream.rows(name, first + start, first + stop)
                continue
            table = stream.source.rows(name, first + start, first + stop)
            block[:, start:stop] += table.float().numpy()
            del table


def _blocks(shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Where each block lies among all tokens, and its shape."""
    start = 0
    for sequences, length in shapes:
        yield slice(start, start + sequences * length), (sequences, length)
        start += sequences * length


def _embed_generic(
    stream: ModelStream,
    modules: Modules,
    tokens: NDArray[np.int32],
    shapes: Sequence[tuple[int, ...]],
    out: Hidden,
    tick: Callable[[], None],
) -> None:
    """The same by transformers' modules, whose table holds the tokens of a micro-batch."""
    rows = out  # As the table has them, before they are replaced.
    if stream.config.embedding_size != out.shape[-1]:
        rows = np.empty((*tokens.shape, stream.config.embedding_size), dtype=np.float32)
    for where, found in _look_up(stream, tokens):
        stream.put(rows, where, found)
        tick()
    for part, (sequences, length) in _blocks(shapes):
        step = max(1, stream.tiles.micro_batch_tokens // length)
        for start in range(0, sequences, step):
            first = part.start + start * length
            here = slice(first, min(first + step * length, part.stop))
            table = stream.load(rows[here])
            ids = torch.arange(len(table), device=stream.device).view(-1, length)
            given = torch.from_numpy(tokens[here].astype(np.int64)).to(stream.device)
            made = modules.embed(ids, table, given.view(-1, length))
            stream.put(out, here, made.reshape(-1, made.shape[-1]))


@torch.inference_mode()
def token_embeddings(stream: ModelStream, tokens: NDArray[np.int32]) -> Tensor:
    """Embeddings from the table, scaled, (sequences x length x embedding size)."""
    out = torch.empty(*tokens.shape, stream.config.embedding_size, device=stream.device)
    for where, rows in _look_up(stream, tokens):
        out[tuple(torch.from_numpy(axis) for axis in where)] = rows
    return out


def rows_of_tokens(stream: ModelStream, tokens: NDArray[np.int32]) -> Tensor:
    """Embeddings of a few tokens, (n,), scaled, (n x embedding size), on the host.

    The table is large: only their rows are read.
    """
    config = stream.config
    rows = torch.empty(len(tokens), config.embedding_size)
    for token in np.unique(tokens).tolist():
        row = stream.source.rows(config.names.embedding, token, token + 1, dtype=torch.float32)
        rows[torch.from_numpy(tokens == token)] = row * config.embedding_scale
    return rows


def _look_up(
    stream: ModelStream, tokens: NDArray[np.int32]
) -> Iterator[tuple[tuple[NDArray[np.int64], ...], Tensor]]:
    """(where, embeddings of the tokens there) for each tile of the table, some at a time."""
    for first_row, rows in stream.tiles_of(stream.config.names.embedding):
        inside = np.nonzero((tokens >= first_row) & (tokens < first_row + len(rows)))
        for start in range(0, len(inside[0]), stream.tiles.head_tokens):
            where = tuple(axis[start : start + stream.tiles.head_tokens] for axis in inside)
            at = torch.from_numpy(tokens[where].astype(np.int64)) - first_row
            yield where, rows[at.to(rows.device)].mul_(stream.config.embedding_scale)
        del rows


class Head:
    """Turns the last layer's output into logits, a tile of the vocabulary at a time."""

    def __init__(self, stream: ModelStream) -> None:
        self._stream = stream
        config, names = stream.config, stream.config.names
        self._rule = None
        if stream.modules is not None:
            self._rule = stream.modules.head_rule(config.hidden_size)
        bias = names.head_bias or names.head.removesuffix(".weight") + ".bias"
        stored = () if config.generic is None else dict(config.generic.tensors)
        self._bias = stream.tensor(bias) if bias in stored else None
        self._norm: dict[str, Tensor] = {}
        if names.final_norm is not None:
            kinds = ("weight", "bias") if config.norm.kind == "layer" else ("weight",)
            roles = [f"{names.final_norm}.{kind}" for kind in kinds]
            self._norm = {role: stream.tensor(role) for role in roles}
        self._out = None if names.project_out is None else stream.tensor(names.project_out)

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of the head's matrix; a factor of the logits is in them, and a bias."""
        plain = self._stream.tiles_of(self._stream.config.head_matrix)
        return plain if self._rule is None else self._scaled(plain, self._rule.scale)

    def _scaled(
        self, tiles: Iterator[tuple[int, Tensor]], scale: float
    ) -> Iterator[tuple[int, Tensor]]:
        for first, rows in tiles:
            scaled = rows
            if self._bias is not None:
                scaled = torch.cat([rows, self._bias[first : first + len(rows), None]], dim=-1)
            scaled = scaled if scale == 1.0 else scaled * scale
            del rows
            yield first, scaled
            del scaled  # Not beside the next tile.

    def logits(self, hidden: Hidden, rows: Tensor) -> Tensor:
        """Logits of a tile, (n x tile), from the last layer's output (n x d)."""
        return self.capped(self.output(self.load(hidden)) @ rows.T)

    def load(self, hidden: Hidden) -> Tensor:
        """A copy on the device; the same tensor if it is there already."""
        return self._stream.load(hidden)

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the tokens that are multiplied with a tile at a time."""
        step = self._stream.tiles.head_tokens
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def output(self, hidden: Tensor) -> Tensor:
        """Input of the head's matrix, (n x embedding size), from the last layer's (n x d).

        Where the head has a bias, a last column of ones meets it.
        """
        config = self._stream.config
        if self._stream.modules is not None:
            return self.with_ones(self._stream.modules.head_input(hidden))
        if config.names.final_norm is not None:
            hidden = normalise(config.norm, hidden, self._norm, config.names.final_norm)
        return hidden if self._out is None else hidden @ self._out.T

    def with_ones(self, met: Tensor) -> Tensor:
        """What meets the head's matrix, (n x e), with a last column of ones if it has a bias."""
        return met if self._bias is None else torch.cat([met, torch.ones_like(met[:, :1])], -1)

    def capped(self, logits: Tensor) -> Tensor:
        """Logits with the model's soft cap, if it has one: in place."""
        cap = self._cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    @property
    def _cap(self) -> float | None:
        return self._stream.config.logit_soft_cap if self._rule is None else self._rule.cap

    def slope(self, capped: Tensor) -> Tensor | float:
        """Derivative of the soft cap at the logits that it turned into `capped`."""
        cap = self._cap
        return 1.0 if cap is None else 1.0 - (capped / cap).square_()


class LogPartition:
    """Running log-sum-exp of rows of logits, (n,)."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.peak = torch.full((rows,), -torch.inf, device=device)
        self.total = torch.zeros(rows, dtype=torch.float64, device=device)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Add a tile (n x tile). Returns its exp(z - peak), and the factor for older sums."""
        peak = torch.maximum(self.peak, logits.amax(-1))
        shrink = (self.peak - peak).double().exp()
        weights = (logits - peak[:, None]).exp_()
        self.total = self.total * shrink + weights.sum(-1).double()
        self.peak = peak
        return weights, shrink

    def value(self) -> Tensor:
        """The log-sum-exp so far, (n,) float64."""
        return self.peak.double() + self.total.log()


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the model says of tokens that follow positions.

    Attributes:
        losses: Cross-entropy of each, in nats, (n,) float64.
        greedy: Whether no other token is more probable, (n,).
    """

    losses: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def token_losses(
    stream: ModelStream,
    hidden: Hidden,
    targets: NDArray[np.int32],
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Cross-entropy of each target, in nats: see `token_scores`."""
    return token_scores(stream, hidden, targets, tick).losses


def token_scores(
    stream: ModelStream,
    hidden: Hidden,
    targets: NDArray[np.int32],
    tick: Callable[[], None] = lambda: None,
) -> TokenScores:
    """Score the token that follows each position.

    Args:
        stream: The model.
        hidden: Output of the last layer, before the final norm, (n x d).
        targets: The token that follows each position, (n,).
        tick: Called after every tile: a safe point to stop at.
    """
    head = Head(stream)
    chunks = list(head.chunks(len(targets)))
    partitions = [LogPartition(stop - start, stream.device) for start, stop in chunks]
    chosen = torch.zeros(len(targets), dtype=torch.float64)
    wanted = torch.from_numpy(targets.astype(np.int64))
    for first_row, rows in head.tiles():
        for (start, stop), partition in zip(chunks, partitions, strict=True):
            logits = head.logits(hidden[start:stop], rows)
            partition.add(logits)
            column = wanted[start:stop] - first_row
            inside = ((column >= 0) & (column < len(rows))).nonzero().flatten()
            picked = logits[inside.to(logits.device), column[inside].to(logits.device)]
            chosen[start + inside] = picked.double().cpu()
            del logits, picked
        del rows  # Freed before the next tile is read.
        tick()
    if not chunks:
        return TokenScores(np.zeros(0), np.zeros(0, dtype=np.bool_))
    log_partition = torch.cat([partition.value().cpu() for partition in partitions])
    peaks = torch.cat([partition.peak.double().cpu() for partition in partitions])
    return TokenScores((log_partition - chosen).numpy(), (chosen == peaks).numpy())


def kl_divergences(
    stream: ModelStream,
    reference: Hidden,
    others: Sequence[Hidden],
    tick: Callable[[], None] = lambda: None,
) -> list[float]:
    """Mean KL(reference || other) per token over the model's next-token distributions, in nats.

    Args:
        stream: The model.
        reference: Last layer's output of the dense model, (n x d).
        others: The same of other models with the same final norm and head, each (n x d).
        tick: Called after every tile.

    KL = E_p[z_p - z_q] - logZ_p + logZ_q, with the expectation accumulated along with logZ_p.
    """
    rows_count = len(reference)
    head = Head(stream)
    dense = LogPartition(rows_count, stream.device)
    pruned = [LogPartition(rows_count, stream.device) for _ in others]
    gaps = [torch.zeros(rows_count, dtype=torch.float64, device=stream.device) for _ in others]
    for _, rows in head.tiles():
        reference_logits = head.logits(reference, rows)
        weights, shrink = dense.add(reference_logits)
        for index, other in enumerate(others):
            logits = head.logits(other, rows)
            pruned[index].add(logits)
            gap = logits.sub_(reference_logits).mul_(weights).sum(-1).neg_().double()
            gaps[index] = gaps[index] * shrink + gap
            del logits
        del rows, reference_logits, weights
        tick()
    return [
        float((gap / dense.total - dense.value() + partition.value()).mean())
        for gap, partition in zip(gaps, pruned, strict=True)
    ]


def next_token_logits(stream: ModelStream, hidden: NDArray[np.float32]) -> Tensor:
    """All logits of a few positions, (n x V) float32 on the CPU. For n small."""
    head = Head(stream)
    tiles = [torch.from_numpy(stream.to_host(head.logits(hidden, t))) for _, t in head.tiles()]
    return torch.cat(tiles, dim=-1)


def sample_tokens(
    stream: ModelStream, hidden: NDArray[np.float32], generator: np.random.Generator
) -> NDArray[np.int32]:
    """Draw the token that follows each position, (n,), from the model's distribution.

    The largest of z + g, g standard Gumbel noise, is a draw from softmax(z) (Gumbel 1954), and a
    maximum can be kept over the tiles. g = -log(e) with e standard exponential.

    Args:
        stream: The model.
        hidden: Output of the last layer, before the final norm, (n x d).
        generator: Source of the noise.
    """

    def perturbed(logits: Tensor) -> Tensor:
        noise = torch.from_numpy(generator.standard_exponential(tuple(logits.shape)))
        return logits - noise.log_()

    return _largest(stream, hidden, perturbed)


def greedy_tokens(stream: ModelStream, hidden: NDArray[np.float32]) -> NDArray[np.int32]:
    """The most probable token after each position, (n,); the first of equal ones.

    Args:
        stream: The model.
        hidden: Output of the last layer, before the final norm, (n x d).
    """
    return _largest(stream, hidden, Tensor.double)


def _largest(
    stream: ModelStream, hidden: NDArray[np.float32], score_of: Callable[[Tensor], Tensor]
) -> NDArray[np.int32]:
    """The token with the highest score, which is made of a tile of logits on the host."""
    head = Head(stream)
    best = torch.full((len(hidden),), -torch.inf, dtype=torch.float64)
    chosen = torch.zeros(len(hidden), dtype=torch.int64)
    for first_row, rows in head.tiles():
        for start, stop in head.chunks(len(hidden)):
            logits = torch.from_numpy(stream.to_host(head.logits(hidden[start:stop], rows)))
            score, column = score_of(logits).max(-1)
            better = score > best[start:stop]
            best[start:stop] = torch.where(better, score, best[start:stop])
            chosen[start:stop] = torch.where(better, first_row + column, chosen[start:stop])
    return chosen.numpy().astype(np.int32)
