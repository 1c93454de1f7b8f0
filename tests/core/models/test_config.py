from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.models.config import ModelConfig, RopeConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.structures import sites
from strucprune_core.models.tensors import check_tensors, expected_tensors
from strucprune_core.storage.local import LocalStore

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def parsed(**changes: Any) -> ModelConfig:
    return parse_config({**SMALL, **changes})


def test_defaults_are_those_of_the_reference() -> None:
    config = parse_config({k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    reference = LlamaConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    assert config.blocks[0].kv_heads == reference.num_key_value_heads == 4
    assert config.head_dim == reference.head_dim == 4
    assert config.norm.eps == reference.rms_norm_eps
    assert config.activation == reference.hidden_act
    assert config.tie_word_embeddings is reference.tie_word_embeddings is False
    assert config.blocks[0].rope == RopeConfig()
    assert config.intermediate_sizes == (24, 24)
    assert config.ffn_channels == 48
    assert hash(config) == hash(parse_config(SMALL | {"num_key_value_heads": 4}))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_expected_tensors_are_those_of_the_reference(tie: bool, bias: bool) -> None:
    keys = {**SMALL, "tie_word_embeddings": tie, "attention_bias": bias, "mlp_bias": bias}
    keys["head_dim"] = 6
    model = LlamaForCausalLM(LlamaConfig(**keys))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    config = parse_config(keys)
    assert expected_tensors(config) == shapes
    channel = sum(
        parameter.numel() // 24
        for name, parameter in model.named_parameters()
        if name.startswith("model.layers.0.mlp") and name != "model.layers.0.mlp.down_proj.bias"
    )
    assert sites(config, 0, ["ffn_channels"])[0].parameters == channel


def test_what_the_reference_saves_is_parsed(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    keys = {k: v for k, v in SMALL.items() if k != "model_type"}
    LlamaConfig(**keys, rope_parameters=llama3, dtype=torch.bfloat16).save_pretrained(tmp_path)
    config = parse_config(json.loads((tmp_path / "config.json").read_text()))
    assert config.blocks[0].rope == RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 32)
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(type="linear", factor=2.0)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0},
            RopeConfig(theta=7.0),
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            RopeConfig(5e5, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
    ],
)
def test_old_and_new_rope_keys(keys: dict[str, Any], rope: RopeConfig) -> None:
    assert parsed(**keys).blocks[1].rope == rope


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported"),
        ({"model_type": None}, "not supported"),
        ({"model_type": ["llama"]}, "not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"rope_type": "su"}}, "su"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su"}}, "'su'.*old name of 'longrope'"),
        ({"model_type": "phi3", "rope_scaling": {"type": "yarn"}}, "'yarn'.*phi3"),
        ({"is_causal": False}, "later tokens"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "other shapes"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "bidirectional"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by kind of layer"),
        ({"layer_types": ["sliding_attention"] * 2}, "same window"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 2}, "layer types"),
        ({"rope_scaling": {"rope_type": ["x"]}}, "rope type"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"hidden_act": "swiglu"}, "swiglu"),
        ({"hidden_act": {}}, "activation"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_unsupported_variants(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=words) as caught:
        parsed(**changes)
    assert caught.value.field == "model.uri"


def test_an_unsupported_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"Supported model types: llama"):
        parsed(model_type="mamba")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": None},
        {"vocab_size": 0},
        {"vocab_size": -1},
        {"vocab_size": 2**40},
        {"vocab_size": "32"},
        {"vocab_size": 32.0},
        {"vocab_size": True},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 8},
        {"head_dim": 5},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": -1.0},
        {"rms_norm_eps": True},
        {"rms_norm_eps": 1e400},
        {"tie_word_embeddings": 1},
        {"attention_bias": "yes"},
        {"rope_theta": "1"},
        {"rope_scaling": [1]},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 1]}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": "x", "long_factor": [1, 1]}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2}, "head_dim": 2},
        {"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3}},
        {"model_type": "gemma2", "sliding_window": None},
        {"model_type": "gemma2", "layer_types": ["full_attention"]},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "2"},
        {"model_type": "qwen3_moe", "mlp_only_layers": ["0"]},
        {"model_type": "qwen3_moe", "mlp_only_layers": 1},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 2,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 8,
            }
        },
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        parsed(**changes)
    assert not isinstance(caught.value, UnsupportedArchitecture)


def shape(ffn: Any, query_heads: Any = 4, kv_heads: Any = 2) -> dict[str, Any]:
    return {"ffn": ffn, "query_heads": query_heads, "kv_heads": kv_heads}


def section(*layers: Any) -> dict[str, Any]:
    return {"format_version": 2, "layers": list(layers)}


def test_our_own_pruned_checkpoints() -> None:
    pruned = section(shape([20]), shape([7], 2, 1))
    config = parsed(model_type="strucprune_llama", strucprune=pruned)
    assert config.intermediate_sizes == (20, 7)
    assert (config.model_type, config.family) == ("strucprune_llama", "llama")
    shapes = expected_tensors(config)
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (20, 16)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (16, 7)
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (16, 16)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (8, 16)
    assert shapes["model.layers.1.self_attn.v_proj.weight"] == (4, 16)


@pytest.mark.parametrize(
    "pruned",
    [
        None,
        [],
        {},
        {"format_version": 1, "intermediate_sizes": [20, 7]},
        section(shape([1])),
        section(shape([1]), None),
        section(shape([1]), shape([0])),
        section(shape([1]), shape([1, 1])),
        section(shape([1]), shape("1")),
        section(shape([1]), shape([1], 3, 2)),
        section(shape([1]), shape([1], 2, 4)),
        section(shape([1]), shape([1], True, 1)),
    ],
)
def test_bad_sections(pruned: Any) -> None:
    with pytest.raises(InvalidCheckpoint, match="strucprune"):
        parsed(model_type="strucprune_llama", strucprune=pruned)


@pytest.fixture
def tiny_copy(tiny_model: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    return tmp_path


def check(path: Path) -> None:
    index = open_checkpoint(LocalStore(path))
    check_tensors(parse_config(index.config), index)


def resave(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(path / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")


def test_a_real_checkpoint_passes(tiny_copy: Path) -> None:
    check(tiny_copy)


def test_redundant_tensors_are_tolerated(tiny_copy: Path) -> None:
    extra = {
        "lm_head.weight": torch.zeros(512, 64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }
    resave(tiny_copy, **extra)
    check(tiny_copy)


NAME = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({NAME: None}, f"'{NAME}' is missing"),
        ({NAME: torch.zeros(192, 63)}, rf"'{NAME}' has shape \(192, 63\).*\(192, 64\)"),
        ({NAME: torch.zeros(192, 64, dtype=torch.int8)}, f"'{NAME}' has dtype I8"),
        ({"model.layers.0.lora_A": torch.zeros(1)}, "lora_A.*adapter"),
    ],
)
def test_tensors_that_contradict_the_config(
    tiny_copy: Path, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    resave(tiny_copy, **changes)
    with pytest.raises(InvalidCheckpoint, match=words):
        check(tiny_copy)
