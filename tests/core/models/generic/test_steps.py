"""One token after another: with transformers' cache where a class keeps it, else from the start."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strucprune_core.errors import ScratchUnavailable
from strucprune_core.models.decoding import generate
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.generic import continuing, steps
from strucprune_core.models.streaming import ModelStream
from strucprune_core.scratch.arrays import temporary_array
from tests.core.models.generic.streams import tiny_stream
from tests.core.models.reference import random_tokens

# Plain keys and values; a parallel residual; windows beside full attention, and a decoder beside
# one that sees images; learned positions; recurrent states beside attention; latent attention; more
# layers than the encoder beside them.
WITH_CACHE: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "stablelm": {},
    "gemma3": {"sliding_window": 5},
    "gpt_bigcode": {},
    "qwen3_next": {},
    "deepseek_v3": {"num_key_value_heads": 4},
    "bart": {},
}
# States in the modules; a class without a cache.
WITHOUT = ["recurrent_gemma", "openai-gpt"]


def all_steps(stream: ModelStream, tokens: np.ndarray[Any, Any], scratch: Path, group: int) -> Any:
    """Outputs of the last layer, (sequences x length x d), and the way they were computed."""
    count, length = tokens.shape
    step = steps.step_of(stream, count, length, scratch, lambda size: group, lambda: None)
    found = [step(tokens[:, : n + 1], lambda: None).copy() for n in range(length)]
    return np.stack(found, axis=1), step


@pytest.mark.parametrize("name", [*WITH_CACHE, *WITHOUT])
def test_steps_give_what_the_whole_gives(name: str, tmp_path: Path) -> None:
    stream, _, _ = tiny_stream(name, **WITH_CACHE.get(name, {}))
    tokens = random_tokens(3, 14, 100)
    wanted = final_hidden(stream, tokens, tmp_path, lambda: None)
    found, step = all_steps(stream, tokens, tmp_path, 2)
    assert (type(step).__name__ == "_CachedStep") == (name in WITH_CACHE)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_weights_are_read_once_a_token(tmp_path: Path) -> None:
    stream, source, _ = tiny_stream("olmo2")
    step = steps.step_of(stream, 6, 8, tmp_path, lambda size: 2, lambda: None)
    tokens = random_tokens(6, 8, 100)
    source.reads.clear()
    for length in range(1, 9):
        step(tokens[:, :length], lambda: None)
    reads = Counter(n for name, n in source.reads.items() if ".layers." in name)
    assert set(reads) == {8}


def test_only_what_is_new_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values lie in arrays that hold a whole sequence, made once."""
    made: list[tuple[int, ...]] = []

    def counted(directory: Path, shape: tuple[int, ...]) -> Any:
        made.append(shape)
        return temporary_array(directory, shape)

    monkeypatch.setattr(continuing, "temporary_array", counted)
    stream, _, _ = tiny_stream("olmo2", num_hidden_layers=1)
    all_steps(stream, random_tokens(2, 40, 100), tmp_path, 2)
    long = [shape for shape in made if 40 in shape]
    assert len(long) == 2  # Keys and values.
    assert len(made) < 16


def test_full_scratch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path, shape: tuple[int, ...]) -> Any:
        raise ScratchUnavailable("it is full")

    monkeypatch.setattr(continuing, "temporary_array", full)
    stream, _, _ = tiny_stream("olmo2")
    with pytest.raises(ScratchUnavailable) as refused:
        generate(stream, np.zeros(2, dtype=np.int32), 6, 0, tmp_path)
    assert refused.value.field == "calibration.samples"


def test_the_same_text_with_and_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _, _ = tiny_stream("gemma3", sliding_window=5)
    first = np.array([3, 3, 7], dtype=np.int32)
    cached = generate(stream, first, 20, 0, tmp_path)
    monkeypatch.setattr(steps, "_remembered_bytes", lambda *given: None)
    assert np.array_equal(cached, generate(stream, first, 20, 0, tmp_path))
    assert len(set(cached.flatten().tolist())) > 10
