"""Greedy answers to prompts, streamed: many prompts at once, one decoder layer in memory.

Prompts are sorted by length and answered in groups whose keys and values fit a scratch file. All
sequences of a group are at the same position: what the shortest prompt has tokens for is run at
once, and from there on one position at a time. At a position, a longer prompt still gives its own
token, a shorter one already continues with the most probable token. So the weights are read once
for each position after the shortest prompt, for the whole group.

In transformers' modules every position is a step of its own (see `models.decoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.models.decoding import key_value_bytes, stepping
from strucprune_core.models.forward import Tick
from strucprune_core.models.rope import angle_class
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import greedy_tokens
from strucprune_core.plan.task_memory import BATCH_BYTES

Ended = Callable[[dict[int, list[int]]], set[int]]
"""Which prompts, by number, have a complete answer, from the tokens of those that had none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.

    Attributes:
        tokens: Its tokens, at least one.
        most: Most tokens of the answer, at least one.
    """

    tokens: tuple[int, ...]
    most: int


def answer(
    stream: ModelStream,
    prompts: Sequence[Prompt],
    ended: Ended,
    scratch: Path,
    tick: Tick = lambda: None,
) -> list[list[int]]:
    """Continue prompts with the most probable tokens, in the order given.

    Args:
        stream: The model.
        prompts: What is continued.
        ended: Asked after every position.
        scratch: Directory for keys and values.
        tick: Called after each layer of each position. It may raise.

    Raises:
        ScratchUnavailable: the scratch directory has no space.
    """
    answers: dict[int, list[int]] = {}
    for group in _groups(stream, prompts):
        answers.update(_answer_group(stream, prompts, group, ended, scratch, tick))
    return [answers[number] for number in range(len(prompts))]


def _groups(stream: ModelStream, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Numbers of prompts of similar length, at least one in each group.

    A prompt's tokens are turned by the angles for the prompt with its longest answer.
    """
    config = stream.config
    rooms = [len(prompt.tokens) + prompt.most for prompt in prompts]
    classes = [angle_class(config, room) for room in rooms]
    order = sorted(range(len(prompts)), key=lambda n: (-classes[n], -len(prompts[n].tokens)))
    group: list[int] = []
    longest = 0
    for number in order:
        together = (len(group) + 1) * key_value_bytes(config, max(longest, rooms[number]))
        if group and (together > BATCH_BYTES or classes[number] != classes[group[0]]):
            yield group
            group, longest = [], 0
        group.append(number)
        longest = max(longest, rooms[number])
    if group:
        yield group


@torch.inference_mode()
def _answer_group(
    stream: ModelStream,
    prompts: Sequence[Prompt],
    group: list[int],
    ended: Ended,
    scratch: Path,
    tick: Tick,
) -> dict[int, list[int]]:
    given = np.array([len(prompts[number].tokens) for number in group])
    stops = given + [prompts[number].most for number in group]
    tokens = np.zeros((len(group), int(stops.max())), dtype=np.int32)
    for row, number in zip(tokens, group, strict=True):
        row[: len(prompts[number].tokens)] = prompts[number].tokens
    one_more = stepping(stream, len(group), tokens.shape[1], scratch)
    answers: dict[int, list[int]] = {}
    first = int(given.min()) if stream.config.generic is None else 1
    for length in range(first, tokens.shape[1]):
        hidden = one_more(tokens[:, :length], tick)
        _write(tokens, length, given, greedy_tokens(stream, hidden))
        made = {
            number: tokens[row, given[row] : length + 1].tolist()
            for row, number in enumerate(group)
            if number not in answers and given[row] <= length
        }
        full = {n for n, written in made.items() if len(written) == prompts[n].most}
        for number in full | (ended(made) if made else set()):
            answers[number] = made[number]
        if len(answers) == len(group):
            break
    return answers


def _write(
    tokens: NDArray[np.int32], position: int, given: NDArray[np.int64], found: NDArray[np.int32]
) -> None:
    """Put found tokens at a position, but for prompts that have their own there."""
    free = given <= position
    tokens[free, position] = found[free]
