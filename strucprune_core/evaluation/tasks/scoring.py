"""Log-likelihoods of continuations, streamed: the weights are read once for many requests.

A request is tokens that are given and tokens that are scored. Requests with the same input are run
once: of "the answer is A" and "the answer is B", one token apart, both scores come from one row.
Rows are sorted by length and run in blocks of a micro-batch, padded to the longest of the block.
Padding comes last, and attention is causal, so it changes nothing before it.

The hidden states of all rows lie in a scratch file. Where they would take more than a few GiB
(`plan.task_memory`), the requests are split into batches, and the weights are read once for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.forward import Tick
from strucprune_core.models.rope import angle_class
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed_blocks, token_scores
from strucprune_core.plan.task_memory import batch_tokens
from strucprune_core.scratch.arrays import temporary_array


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens to score.

    Attributes:
        given: Tokens before them, at least one.
        scored: The tokens, at least one.
    """

    given: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def input(self) -> tuple[int, ...]:
        """What the model is given: all but the last token."""
        return (*self.given, *self.scored[:-1])


@dataclass(frozen=True, slots=True)
class Score:
    """What the model says of a continuation.

    Attributes:
        log_likelihood: Sum of its tokens' log-probabilities, in nats.
        greedy: Whether greedy decoding would have written it.
    """

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class _Row:
    """An input, and the requests (by their place in the list) that it answers."""

    tokens: tuple[int, ...]
    requests: list[int]


@torch.inference_mode()
def score(
    stream: ModelStream,
    requests: Sequence[Continuation],
    scratch: Path,
    tick: Tick = lambda: None,
) -> list[Score]:
    """Score continuations, in the order given.

    Args:
        stream: The model.
        requests: What is scored.
        scratch: Directory for activations.
        tick: Called at safe points: after each layer and tile of the vocabulary. It may raise.

    Raises:
        ScratchUnavailable: the scratch directory has no space.
    """
    scores: dict[int, Score] = {}
    for rows in _batches(_rows(requests), stream.config.hidden_size):
        scores.update(_score_rows(stream, requests, rows, scratch, tick))
    return [scores[number] for number in range(len(requests))]


def _rows(requests: Sequence[Continuation]) -> list[_Row]:
    """The different inputs, longest first: what needs most memory comes at the beginning."""
    found: dict[tuple[int, ...], _Row] = {}
    for number, request in enumerate(requests):
        tokens = request.input
        found.setdefault(tokens, _Row(tokens, [])).requests.append(number)
    return sorted(found.values(), key=lambda row: (-len(row.tokens), row.tokens))


def _batches(rows: Sequence[_Row], width: int) -> Iterator[list[_Row]]:
    """Rows whose hidden states fit the scratch file together, at least one."""
    most_tokens = batch_tokens(width)
    batch: list[_Row] = []
    tokens = 0
    for row in rows:
        if batch and tokens + len(row.tokens) > most_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.tokens)
    if batch:
        yield batch


def _block_shapes(config: ModelConfig, rows: Sequence[_Row], most: int) -> list[tuple[int, int]]:
    """(rows, length) of each block of at most so many tokens, at least one row.

    Rows are sorted, so the first of a block is its longest. Padding may change no angle.
    """
    shapes: list[tuple[int, int]] = []
    count, length = 0, 0
    for row in rows:
        own = len(row.tokens)
        full = (count + 1) * length > most
        if count and (full or angle_class(config, own) != angle_class(config, length)):
            shapes.append((count, length))
            count = 0
        count, length = count + 1, length if count else own
    return [*shapes, (count, length)]


def _padded(rows: Sequence[_Row], shapes: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Tokens of all blocks, one after another; zeros where a row is shorter than its block."""
    tokens = np.zeros(sum(count * length for count, length in shapes), dtype=np.int32)
    for start, row in zip(_starts(shapes), rows, strict=True):
        tokens[start : start + len(row.tokens)] = row.tokens
    return tokens


def _starts(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Where each row begins among the tokens of all blocks."""
    starts: list[int] = []
    block = 0
    for count, length in shapes:
        starts += [block + number * length for number in range(count)]
        block += count * length
    return starts


def _score_rows(
    stream: ModelStream,
    requests: Sequence[Continuation],
    rows: Sequence[_Row],
    scratch: Path,
    tick: Tick,
) -> Iterator[tuple[int, Score]]:
    shapes = _block_shapes(stream.config, rows, stream.tiles.micro_batch_tokens)
    hidden = _run(stream, _padded(rows, shapes), shapes, scratch, tick)
    numbers = [number for row in rows for number in row.requests]
    places = [
        _scored_places(start, row, requests[number])
        for start, row in zip(_starts(shapes), rows, strict=True)
        for number in row.requests
    ]
    chosen = temporary_array(scratch, (sum(map(len, places)), hidden.shape[-1]))
    np.take(hidden, np.concatenate(places), axis=0, out=chosen)
    del hidden
    targets = np.concatenate([requests[number].scored for number in numbers]).astype(np.int32)
    found = token_scores(stream, chosen, targets, tick)
    start = 0
    for number, place in zip(numbers, places, strict=True):
        part = slice(start, start + len(place))
        yield number, Score(-float(found.losses[part].sum()), bool(found.greedy[part].all()))
        start += len(place)


def _scored_places(start: int, row: _Row, request: Continuation) -> NDArray[np.int64]:
    """The tokens after which those of the request are predicted: the last of its row."""
    stop = start + len(row.tokens)
    return np.arange(stop - len(request.scored), stop, dtype=np.int64)


def _run(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    shapes: Sequence[tuple[int, int]],
    scratch: Path,
    tick: Tick,
) -> NDArray[np.float32]:
    """Output of the last layer for all tokens, (n x d), in a scratch file."""
    width = stream.config.hidden_size
    hidden = temporary_array(scratch, (len(tokens), width))
    embed_blocks(stream, tokens, shapes, hidden, tick)
    for layer, weights in stream.layers(range(stream.config.layers)):
        start = 0
        for count, length in shapes:
            part = slice(start, start + count * length)
            block = hidden[part].reshape(count, length, width)
            made = stream.run_layer(layer, weights, block).hidden
            stream.put(hidden, part, made.reshape(-1, width))
            start = part.stop
        del weights
        tick()
    return hidden
