from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strucprune_core.errors import ScratchUnavailable, Stopped
from strucprune_core.models import decoding
from strucprune_core.models.decoding import generate, key_value_cache, step, stepping
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import next_token_logits, sample_tokens
from tests.core.models import families
from tests.core.models.llama_variants import VARIANTS
from tests.core.models.reference import random_llama, random_tokens, reference_logits, stream_of

ZEROS = np.zeros(4, dtype=np.int32)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_steps_give_the_logits_of_the_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    model, tokens = random_llama(**options), random_tokens(5, 24)
    stream = stream_of(model, tmp_path / "model")
    steps = []
    cache = key_value_cache(tmp_path, stream.config, *tokens.shape)
    for position in range(tokens.shape[1]):
        hidden = step(stream, tokens[:, position], position, cache)
        steps.append(next_token_logits(stream, hidden))
    found = torch.stack(steps, dim=1)
    torch.testing.assert_close(found, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)
    whole = final_hidden(stream, tokens, tmp_path, lambda: None)
    assert np.allclose(hidden, whole[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_every_family_steps_to_the_same_logits(tmp_path: Path, variant: str) -> None:
    model, tokens = families.random_model(variant), random_tokens(3, 24, 512)
    stream = stream_of(model, tmp_path / "model")
    steps = []
    cache = key_value_cache(tmp_path, stream.config, *tokens.shape)
    for position in range(tokens.shape[1]):
        hidden = step(stream, tokens[:, position], position, cache)
        steps.append(next_token_logits(stream, hidden))
    found = torch.stack(steps, dim=1)
    torch.testing.assert_close(found, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_tokens_that_are_run_at_once_fill_the_cache(tmp_path: Path, variant: str) -> None:
    """Steps after them give the same logits."""
    model, tokens = families.random_model(variant), random_tokens(5, 24, 512)
    stream = stream_of(model, tmp_path / "model")
    stream = replace(stream, tiles=Tiles(micro_batch_tokens=40))
    one_more = stepping(stream, 5, 24, tmp_path)
    found = [
        next_token_logits(stream, one_more(tokens[:, :length], lambda: None))
        for length in range(17, 25)
    ]
    wanted = reference_logits(model, tokens)[:, 16:]
    torch.testing.assert_close(torch.stack(found, dim=1), wanted, rtol=1e-4, atol=1e-4)


def test_groups_change_nothing_but_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    tokens = random_tokens(7, 6)
    results = []
    for group in (1, 3, 100):
        monkeypatch.setattr(decoding, "_MAX_GROUP", group)
        cache = key_value_cache(tmp_path, stream.config, *tokens.shape)
        for position in range(tokens.shape[1]):
            hidden = step(stream, tokens[:, position], position, cache)
        results.append(hidden)
    assert all(np.allclose(result, results[0], rtol=1e-5, atol=1e-5) for result in results)


def test_groups_are_bounded_by_their_keys_and_values(tmp_path: Path) -> None:
    config = stream_of(random_llama(), tmp_path / "model").config
    assert decoding._group(config, 16) == decoding._MAX_GROUP
    assert decoding._group(config, 1 << 17) == decoding._GROUP_CACHE_BYTES // (2 * 16 * 4 << 17)
    assert decoding._group(config, 1 << 30) == 1


def test_the_seed_decides(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    first = np.array([3, 3, 7], dtype=np.int32)
    texts = [generate(stream, first, 20, seed, tmp_path) for seed in (0, 0, 1)]
    assert texts[0].shape == (3, 20)
    assert texts[0].dtype == np.int32
    assert np.array_equal(texts[0][:, 0], first)
    assert np.array_equal(texts[0], texts[1])
    assert not np.array_equal(texts[0], texts[2])
    assert not np.array_equal(texts[0][0], texts[0][1])
    assert not [path for path in tmp_path.iterdir() if path.name != "model"]


@pytest.mark.parametrize(("tile_rows", "chunk"), [(7, 500), (101, 2048)])
def test_tokens_come_in_the_model_s_proportions(tmp_path: Path, tile_rows: int, chunk: int) -> None:
    tiles = Tiles(vocabulary_rows=tile_rows, head_tokens=chunk)
    stream = replace(stream_of(random_llama(), tmp_path / "model"), tiles=tiles)
    hidden = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float32)
    draws = 20_000
    chosen = sample_tokens(
        stream, np.repeat(hidden, draws, axis=0), np.random.Generator(np.random.PCG64(0))
    )
    expected = draws * next_token_logits(stream, hidden).softmax(-1)[0].double().numpy()
    seen = np.bincount(chosen, minlength=101)
    common = expected > 5
    chi_square = ((seen - expected)[common] ** 2 / expected[common]).sum()
    degrees = common.sum()
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_the_second_token_follows_from_the_first(tmp_path: Path) -> None:
    model = random_llama(num_hidden_layers=1, vocab_size=11, initializer_range=0.5)
    stream = stream_of(model, tmp_path / "model")
    first = np.repeat(np.array([2, 5], dtype=np.int32), 2000)
    texts = generate(stream, first, 3, 0, tmp_path)
    probabilities = reference_logits(model, np.array([[2], [5]], dtype=np.int32)).softmax(-1)
    for token, row in ((2, 0), (5, 1)):
        counts = Counter(texts[first == token, 1].tolist())
        for other in range(11):
            p = float(probabilities[row, 0, other])
            assert abs(counts[other] - 2000 * p) < 5 * np.sqrt(2000 * p * (1 - p)) + 5


def test_it_stops_between_layers(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    left = iter(range(7))

    def tick() -> None:
        if next(left) == 4:
            raise Stopped("asked to")

    with pytest.raises(Stopped):
        generate(stream, ZEROS, 50, 0, tmp_path, tick)
    assert next(left) == 5
    assert not [path for path in tmp_path.iterdir() if path.name != "model"]


def test_ticks_are_counted(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    ticks: list[int] = []
    generate(stream, ZEROS, 5, 0, tmp_path, lambda: ticks.append(1))
    assert len(ticks) == 3 * 4


def test_a_full_disk_is_reported_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    stream = stream_of(random_llama(), tmp_path / "model")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ScratchUnavailable, match="no space for keys and values") as caught:
        generate(stream, ZEROS, 50, 0, tmp_path)
    assert caught.value.field == "calibration.samples"
    assert "fewer or shorter sequences" in str(caught.value.remedy)
