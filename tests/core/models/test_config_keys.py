"""Every key of every family's config class: implemented, refused, or without effect.

A key that is silently ignored is the worst bug a parser can have: the job runs, and prunes another
model. So each key is set to another value than its default, and either the model is refused or our
logits are those that transformers computes with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strucprune_core.errors import UnsupportedArchitecture
from tests.core.models.config_keys import FAMILIES, changes_of, model_of
from tests.core.models.reference import (
    open_stream,
    random_tokens,
    reference_logits,
    streamed_logits,
)

REFUSED_EVERYWHERE = {"is_causal"}
ALIKE = {"layer_types", "partial_rotary_factor"}  # All layers are alike, and rotate whole heads.
REFUSED: dict[str, set[str]] = {
    "llama": ALIKE,
    "mistral": ALIKE,
    "qwen2": {"partial_rotary_factor"},
    "qwen3": {"partial_rotary_factor"},
    "gemma2": {"partial_rotary_factor", "use_bidirectional_attention"},
    "gemma3": {
        "partial_rotary_factor",
        "use_bidirectional_attention",
        "attn_logit_softcapping",  # which transformers' class has and does not obey
    },
    "phi3": {"layer_types"},
    "opt": {"_remove_final_layer_norm", "layer_norm_elementwise_affine"},
    "gpt2": {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"},
    "mixtral": ALIKE,
    "qwen3_moe": ALIKE,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_key_is_implemented_or_refused_or_without_effect(family: str, tmp_path: Path) -> None:
    tokens = random_tokens(2, 40, 64)
    wrong: dict[str, str] = {}
    right: set[str] = set()
    refused: set[str] = set()
    for number, changes in enumerate(changes_of(family)):
        model = model_of(family, changes)
        if model is None:
            continue
        directory = tmp_path / str(number)
        model.save_pretrained(directory)
        try:
            logits = streamed_logits(open_stream(directory), tokens, tmp_path)
        except UnsupportedArchitecture:
            refused.add(list(changes)[-1])
            continue
        try:
            expected = reference_logits(model, tokens)
        except ValueError:
            continue
        difference = float((logits - expected).abs().max())
        if not difference <= 1e-4 * max(1.0, float(expected.abs().max())):
            wrong[json.dumps(changes)] = f"{difference:.3g}"
        right.add(list(changes)[-1])
    assert not wrong
    assert refused == {*REFUSED_EVERYWHERE, *REFUSED.get(family, set())}
    assert len(right) > 8
