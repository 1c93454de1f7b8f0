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
