from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from strucprune_core.errors import Stopped
from strucprune_core.models.forward import final_hidden, micro_batches
from strucprune_core.models.tiles import Tiles
from tests.core.models.llama_variants import VARIANTS
from tests.core.models.reference import (
    random_llama,
    random_tokens,
    reference_logits,
    stream_of,
    streamed_logits,
)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_streamed_logits_are_those_of_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    model, tokens = random_llama(**options), random_tokens(3, 40)
    streamed = streamed_logits(stream_of(model, tmp_path / "model"), tokens, tmp_path)
    torch.testing.assert_close(streamed, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"mlp_bias": True, "tie_word_embeddings": True}])
def test_a_pruned_model_streams_like_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    model, tokens = random_llama(widths=[48, 7, 1, 20], **options), random_tokens(2, 24)
    stream = stream_of(model, tmp_path / "model")
    assert stream.config.intermediate_sizes == (48, 7, 1, 20)
    streamed = streamed_logits(stream, tokens, tmp_path)
    torch.testing.assert_close(streamed, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_computed_on_in_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tokens, model = random_tokens(2, 16), tmp_path / "model"
    streamed = streamed_logits(stream_of(random_llama().to(dtype), model), tokens, tmp_path)
    reopened = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = reference_logits(reopened, tokens)
    torch.testing.assert_close(streamed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 81, 10**6])
def test_micro_batches_change_nothing(tmp_path: Path, micro_batch_tokens: int) -> None:
    model, tokens = random_llama(), random_tokens(5, 40)
    stream = stream_of(model, tmp_path / "model")
    tiles = Tiles(micro_batch_tokens=micro_batch_tokens)
    streamed = streamed_logits(stream, tokens, tmp_path, tiles)
    torch.testing.assert_close(streamed, reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


def test_micro_batches_are_whole_sequences() -> None:
    assert list(micro_batches(5, 10, 25)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(micro_batches(2, 10, 3)) == [slice(0, 1), slice(1, 2)]
    assert list(micro_batches(0, 10, 3)) == []


def test_it_can_be_stopped_after_each_layer_and_cleans_up(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    layers: list[int] = []

    def stop_at_the_second() -> None:
        layers.append(1)
        if len(layers) == 2:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        final_hidden(stream, random_tokens(1, 8), scratch, stop_at_the_second)
    assert len(layers) == 2
    assert list(scratch.iterdir()) == []
