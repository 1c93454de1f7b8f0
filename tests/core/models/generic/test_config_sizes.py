"""Sizes in config.json against those in the files, before torch is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from tests.core.models.generic.tiny import save_tiny

ABSURD = 10**9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    names = ("olmo2", "gpt_bigcode", "gemma3", "deepseek_v3")
    return {name: save_tiny(name, root / name) for name in names}


def with_config(model: Path, directory: Path, change: dict[str, Any]) -> LocalStore:
    """The same files with another config.json; a change of a part is made in that part."""
    directory.mkdir()
    for file in model.iterdir():
        shutil.copy(file, directory)
    raw = json.loads((model / "config.json").read_text())
    for key, value in change.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    (directory / "config.json").write_text(json.dumps(raw))
    return LocalStore(directory)


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("olmo2", {"hidden_size": ABSURD}, "hidden_size"),
        ("olmo2", {"hidden_size": 32}, "hidden_size"),
        ("olmo2", {"intermediate_size": ABSURD}, "intermediate_size"),
        ("olmo2", {"intermediate_size": 40}, "intermediate_size"),
        ("olmo2", {"vocab_size": ABSURD}, "vocab_size"),
        ("olmo2", {"vocab_size": 300}, "vocab_size"),
        ("olmo2", {"num_attention_heads": ABSURD}, "num_attention_heads"),
        ("olmo2", {"head_dim": ABSURD}, "head_dim"),
        ("olmo2", {"max_position_embeddings": ABSURD}, "max_position_embeddings"),
        ("olmo2", {"max_position_embeddings": 2**30}, "max_position_embeddings"),
        ("gpt_bigcode", {"n_positions": ABSURD}, "n_positions"),
        ("gpt_bigcode", {"n_positions": 100_000}, "wpe"),
        ("gpt_bigcode", {"n_embd": 32}, "n_embd"),
        ("gpt_bigcode", {"n_inner": 100}, "n_inner"),
        ("gemma3", {"text_config": {"hidden_size": 32}}, "hidden_size"),
        ("gemma3", {"vision_config": {"hidden_size": ABSURD}}, "hidden_size"),
        ("deepseek_v3", {"kv_lora_rank": ABSURD}, "kv_lora_rank"),
        ("deepseek_v3", {"n_routed_experts": ABSURD}, "n_routed_experts"),
        ("deepseek_v3", {"n_routed_experts": 20_000}, "n_routed_experts"),
        ("deepseek_v3", {"n_shared_experts": ABSURD}, "n_shared_experts"),
    ],
    ids=str,
)
def test_a_contradiction_is_refused(
    models: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any], key: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=key) as refused:
        inspect_model(with_config(models[name], tmp_path / "model", change))
    assert refused.value.field == "model.uri"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("olmo2", {"rope_theta": 50_000_000, "eos_token_id": ABSURD}),
        ("olmo2", {"sliding_window_size": ABSURD, "max_batch_size": ABSURD}),
        ("olmo2", {"max_position_embeddings": 10_485_760}),
        ("gpt_bigcode", {"n_positions": 256}),
    ],
    ids=str,
)
def test_numbers_that_are_no_sizes_may_be_large(
    models: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    inspect_model(with_config(models[name], tmp_path / "model", change))


def test_a_pruned_model_keeps_the_dense_sizes(models: dict[str, Path], tmp_path: Path) -> None:
    """Its config.json says the dense widths, and lists those of the tensors."""
    change = {"model_type": "strucprune_olmo2", "intermediate_size": 64, "strucprune": "any"}
    inspect_model(with_config(models["olmo2"], tmp_path / "model", change))
