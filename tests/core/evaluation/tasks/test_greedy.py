"""Greedy answers: those of transformers' own generate, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strucprune_core.evaluation.tasks import greedy
from strucprune_core.evaluation.tasks.greedy import Prompt, answer
from strucprune_core.models.decoding import key_value_bytes
from strucprune_core.models.tiles import Tiles
from tests.core.models import families
from tests.core.models.generic.streams import tiny_stream
from tests.core.models.reference import random_llama, stream_of
from tests.support.counted import CountedSource

PROMPTS = [((5, 9, 2), 7), ((3,), 4), (tuple(range(1, 18)), 5), ((8, 8, 1, 30, 4), 9)]
ANSWERS = [Prompt(tokens, most) for tokens, most in PROMPTS]


def never(made: dict[int, list[int]]) -> set[int]:
    return set()


def by_transformers(model: Any, prompt: Prompt) -> list[int]:
    """By whole forward passes: a model's generation_config may have rules of its own.

    Padded to the longest answer, since the angles of some models depend on the length.
    """
    length = len(prompt.tokens)
    tokens = torch.zeros(1, length + prompt.most, dtype=torch.int64)
    tokens[0, :length] = torch.tensor(prompt.tokens)
    with torch.inference_mode():
        for position in range(length, length + prompt.most):
            tokens[0, position] = model(tokens).logits[0, position - 1].argmax()
    written: list[int] = tokens[0, length:].tolist()
    return written


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_answers_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    model = families.random_model(variant)
    stream = stream_of(model, tmp_path / "model")
    stream = replace(stream, tiles=Tiles(micro_batch_tokens=8))
    found = answer(stream, ANSWERS, never, tmp_path)
    assert found == [by_transformers(model, prompt) for prompt in ANSWERS]


@pytest.mark.parametrize("name", ["olmo2", "recurrent_gemma"])
def test_generic_models_too(tmp_path: Path, name: str) -> None:
    stream, _, model = tiny_stream(name)
    found = answer(stream, ANSWERS, never, tmp_path)
    assert found == [by_transformers(model, prompt) for prompt in ANSWERS]


def test_the_weights_are_read_once_for_each_position_of_the_group(tmp_path: Path) -> None:
    model = random_llama()
    stream = stream_of(model, tmp_path / "model")
    source = CountedSource(stream.source)
    prompts = [Prompt(tuple(range(1, 11)), 6), Prompt(tuple(range(1, 14)), 3)] * 5
    answer(replace(stream, source=source), prompts, never, tmp_path)
    # Once for the first ten tokens, then once for each of the positions to the sixteenth token.
    layers = {count for name, count in source.counts.items() if ".layers." in name}
    assert layers == {6}


def test_answers_end_where_they_are_told_to(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    whole = answer(stream, ANSWERS, never, tmp_path)
    seen: list[int] = []

    def two_tokens_or_the_second_prompt(made: dict[int, list[int]]) -> set[int]:
        seen.extend(made)
        return {number for number, tokens in made.items() if number == 1 or len(tokens) == 2}

    found = answer(stream, ANSWERS, two_tokens_or_the_second_prompt, tmp_path)
    assert found == [whole[0][:2], whole[1][:1], whole[2][:2], whole[3][:2]]
    assert seen.count(1) == 1, "a complete answer is not asked for again"


def test_a_full_scratch_file_makes_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    wanted = answer(stream, ANSWERS, never, tmp_path)
    room = key_value_bytes(stream.config, 22)
    monkeypatch.setattr(greedy, "BATCH_BYTES", 2 * room)
    groups = list(greedy._groups(stream, ANSWERS))
    assert groups == [[2, 3], [0, 1]]
    assert answer(stream, ANSWERS, never, tmp_path) == wanted


def test_no_prompts_have_no_answers(tmp_path: Path) -> None:
    assert answer(stream_of(random_llama(), tmp_path / "model"), [], never, tmp_path) == []


def test_own_tokens_of_longer_prompts_stay() -> None:
    tokens = np.array([[1, 2, 0], [3, 4, 5]], dtype=np.int32)
    greedy._write(tokens, 2, np.array([2, 3]), np.array([9, 9], dtype=np.int32))
    assert tokens.tolist() == [[1, 2, 9], [3, 4, 5]]
