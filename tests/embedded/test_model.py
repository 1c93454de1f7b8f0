"""The converted SmolLM2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedded.model import _undo_rope_permutation


def test_rope_permutation_is_undone() -> None:
    heads, head_dim, columns = 3, 8, 5
    weight = np.arange(heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    # What llama.cpp's converter does to a checkpoint of transformers.
    halves = weight.reshape(heads, 2, head_dim // 2, columns)
    interleaved = halves.swapaxes(1, 2).reshape(weight.shape)
    assert np.array_equal(_undo_rope_permutation(interleaved, heads), weight)


@pytest.mark.real_model
def test_the_model_speaks(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
