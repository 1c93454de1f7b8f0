from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.models.tiles import Tiles
from tests.core.models.families import random_model
from tests.core.models.reference import random_llama, random_tokens, stream_of

WINDOWS = random_tokens(5, 24)


@torch.inference_mode()
def reference_perplexity(model: Any) -> float:
    """By transformers' own loss, which leaves out the first token of each window."""
    tokens = torch.from_numpy(WINDOWS.astype(np.int64))
    return math.exp(model(input_ids=tokens, labels=tokens).loss)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_it_is_the_cross_entropy_of_transformers(tmp_path: Path, tie: bool) -> None:
    model = random_llama(tie_word_embeddings=tie)
    stream = stream_of(model, tmp_path / "model")
    expected = reference_perplexity(model)
    # Less than a window, one, several with a rest, and all at a time.
    found = [
        perplexity(replace(stream, tiles=Tiles(micro_batch_tokens=tokens)), WINDOWS, tmp_path)
        for tokens in (8, 24, 50, 4096)
    ]
    assert found == pytest.approx([expected] * 4, rel=1e-5)
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


@pytest.mark.parametrize("variant", ["opt", "opt-350m", "gpt2", "gemma2"])
def test_hidden_states_may_stay_on_the_device(tmp_path: Path, variant: str) -> None:
    """Then nothing but weights crosses, and what is read of the losses."""
    stream = stream_of(random_model(variant), tmp_path / "model")
    tiles = Tiles(micro_batch_tokens=50, vocabulary_rows=100)
    found, crossed = [], []
    for resident in (0, WINDOWS.size):
        tiled = replace(stream, tiles=replace(tiles, resident_tokens=resident))
        found.append(perplexity(tiled, WINDOWS, tmp_path))
        crossed.append(tiled.transfers.take())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    config = stream.config
    states = 4 * WINDOWS.size * config.hidden_size
    away, there = crossed
    assert away.to_host - there.to_host == (config.layers + 1) * states
    # Loaded for each layer and each of six tiles; a table of positions only where it is added.
    table = 4 * WINDOWS.shape[1] * config.hidden_size if config.names.positions else 0
    assert away.to_device - there.to_device == (config.layers + 6) * states - table


def test_each_window_is_scored_on_its_own(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    single = [perplexity(stream, window[None], tmp_path) for window in WINDOWS]
    together = perplexity(stream, WINDOWS, tmp_path)
    assert math.log(together) == pytest.approx(np.log(single).mean(), rel=1e-6)


def test_it_ticks_after_each_layer_and_the_head(tmp_path: Path) -> None:
    ticks: list[None] = []
    stream = stream_of(random_llama(), tmp_path / "model")
    perplexity(stream, WINDOWS, tmp_path, lambda: ticks.append(None))
    assert len(ticks) == 3 + 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("factor", "expected"), [(1e6, math.inf), (math.nan, math.nan)])
def test_a_broken_model_has_no_perplexity(tmp_path: Path, factor: float, expected: float) -> None:
    model = random_llama()
    model.lm_head.weight.data *= factor
    found = perplexity(stream_of(model, tmp_path / "model"), WINDOWS, tmp_path)
    assert found == pytest.approx(expected, nan_ok=True)
