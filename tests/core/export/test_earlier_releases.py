"""How releases of transformers before 5 read a result. `make runtimes` tries two of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from strucprune_core.export import modeling_strucprune

PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.
FULL = {"ffn": [8], "query_heads": 2, "kv_heads": 1}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            {
                "model_type": "strucprune_llama",
                "dtype": "bfloat16",
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            },
            {"torch_dtype": "bfloat16", "rope_theta": 500.0, "rope_scaling": None},
        ),
        (
            {
                "model_type": "strucprune_llama",
                "rope_parameters": {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0},
            },
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {
                "model_type": "strucprune_gpt_neox",
                "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5},
            },
            {"rotary_emb_base": 7.0, "rotary_pct": 0.5},
        ),
        (
            {
                "model_type": "strucprune_gemma3_text",
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 9.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
                },
            },
            {
                "rope_local_base_freq": 3.0,
                "rope_theta": 9.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        (
            {
                "model_type": "strucprune_phi3",
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 3.0,
                    "partial_rotary_factor": 0.75,
                    "original_max_position_embeddings": 16,
                    "short_factor": [1.0],
                    "long_factor": [2.0],
                },
            },
            {
                "rope_theta": 3.0,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 16,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
        ),
        ({"model_type": "strucprune_qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"model_type": "strucprune_mixtral", "num_local_experts": 4}, {"num_local_experts": 4}),
        ({"model_type": "strucprune_llama", "rope_theta": 5.0}, {"rope_theta": 5.0}),
    ],
    ids=str,
)
def test_keys_get_the_names_that_they_had(written: dict[str, Any], read: dict[str, Any]) -> None:
    given = dict(written)
    assert PRUNED.earlier_keys(written) == {"model_type": written["model_type"], **read}
    assert written == given


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, (4, 51)),
        ({"layer_types": ["full_attention"]}, (4, 51)),
        ({"layer_types": ["sliding_attention"]}, (4, 57)),
        ({"model_type": "strucprune_gemma2"}, (4, 57)),
        ({"strucprune": {"layers": [FULL, {**FULL, "ffn": []}]}}, (4, 57)),
        ({"strucprune": {"layers": [{**FULL, "query_heads": 0, "kv_heads": 0}]}}, (4, 57)),
    ],
    ids=str,
)
def test_what_a_release_cannot_run_is_refused(
    changes: dict[str, Any], least: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"model_type": "strucprune_llama", "strucprune": {"layers": [FULL]}}
    config = SimpleNamespace(**{**base, **changes})
    assert PRUNED.least_release(config) == least
    monkeypatch.setattr(PRUNED, "RELEASE", (least[0], least[1] - 1))
    with pytest.raises(ImportError, match=rf"needs transformers {least[0]}\.{least[1]} or later"):
        PRUNED.StrucPruneLlamaForCausalLM(config)


def test_a_model_of_any_other_architecture_needs_transformers_5(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PRUNED, "RELEASE", (4, 57))
    with pytest.raises(ImportError, match="a pruned olmo2 needs transformers 5 or later"):
        PRUNED.classes_of("olmo2")


def test_gemma_asks_attention_that_was_removed_for_its_window() -> None:
    """Its layer in release 4.57 does, to choose rotary positions."""
    assert PRUNED.NoAttention(0).is_sliding is False


def test_opt_joins_its_heads_to_the_width_that_they_have() -> None:
    """transformers 4.51 reshapes to `embed_dim` there, in eager attention."""
    layers = [{**FULL, "query_heads": count, "kv_heads": count} for count in (1, 3)]
    config = PRUNED.StrucPruneOPTConfig(
        hidden_size=32,
        ffn_dim=8,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=16,
        word_embed_proj_dim=32,
        strucprune={"format_version": 2, "layers": layers},
    )
    model = PRUNED.StrucPruneOPTForCausalLM(config)
    widths = [layer.self_attn.embed_dim for layer in model.model.decoder.layers]
    assert widths == [8, 24]
