"""Every family against the real transformers class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strucprune_core.models.tiles import Tiles
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.reference import (
    random_tokens,
    reference_logits,
    stream_of,
    streamed_logits,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_logits_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    model, tokens = random_model(variant), random_tokens(3, 40, 512)
    streamed = streamed_logits(stream_of(model, tmp_path / "model"), tokens, tmp_path)
    torch.testing.assert_close(streamed, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_are_they_if_matrices_pass_by_in_panels(tmp_path: Path, variant: str) -> None:
    model, tokens = random_model(variant), random_tokens(3, 40, 512)
    stream = stream_of(model, tmp_path / "model")
    tiles = Tiles(micro_batch_tokens=80, weight_rows=13)
    streamed = streamed_logits(stream, tokens, tmp_path, tiles)
    torch.testing.assert_close(streamed, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)
