"""GGUF files: what is written is what is read, by us and by transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint, NumericalFailure
from strucprune_core.evaluation.reload_check import check_same_tensors
from strucprune_core.export.gguf_file import (
    GgufFile,
    RoundedSource,
    permute_rotary,
    undo_rotary,
    write_gguf,
)
from strucprune_core.export.gguf_layout import (
    ROPE_FACTORS,
    architecture,
    plan_tensors,
    rope_factors,
)
from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.support.sentencepiece import sentencepiece_tokenizer
from tests.support.tiny_llama import make_tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@dataclass(frozen=True)
class Written:
    path: Path
    facts: ModelFacts

    def stored(self, name: str) -> str:
        return self.facts.index.tensors[name].dtype

    @property
    def expected(self) -> RoundedSource:
        reader = TensorReader(self.facts.index)
        return RoundedSource(reader, plan_tensors(self.facts.config, self.stored))


def change_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def write(model: Path, path: Path) -> Written:
    facts = inspect_model(LocalStore(model))
    index, config = facts.index, facts.config
    result = Written(path, facts)
    vocabulary = read_vocabulary(index.store, index.other_files, index.config, config.vocab_size)
    source = TensorReader(index)
    write_gguf(path, config, source, result.stored, vocabulary, "tiny", lambda done, total: None)
    return result


def read_back(written: Written) -> GgufFile:
    file = GgufFile(written.path, written.facts.config)
    config = parse_config(file.config)
    assert file.describe(config) == set(expected_tensors(written.facts.config))
    names = sorted(expected_tensors(config))
    check_same_tensors(written.expected, file, names, lambda done, total: None)
    return file


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rope", [None, LINEAR, LLAMA3], ids=["plain", "linear", "llama3"])
def test_a_model_comes_back(
    tmp_path: Path, tie: bool, dtype: torch.dtype, rope: dict[str, Any] | None
) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2, tie=tie, dtype=dtype)
    if rope is not None:
        change_config(model, rope_parameters=rope)
    written = write(model, tmp_path / "model.gguf")
    file = read_back(written)
    found, dense = parse_config(file.config), written.facts.config
    assert found.blocks == dense.blocks
    assert found.tie_word_embeddings == dense.tie_word_embeddings == tie
    assert found.norm.eps == pytest.approx(dense.norm.eps)
    stored = file.tensor("model.layers.0.self_attn.q_proj.weight")
    assert stored.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)
    assert file.tensor("model.norm.weight").dtype == torch.float32
    assert file.field("general.architecture") == "llama"


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_reads_the_same_model(tmp_path: Path, tie: bool) -> None:
    dense = make_tiny_llama(tmp_path / "model", tie=tie)
    write(dense, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(dense)
    loaded = load_gguf_checkpoint(
        str(tmp_path / "model.gguf"), return_tensors=True, model_to_load=model
    )
    state = model.state_dict()
    assert set(loaded["tensors"]) == set(state) - ({"lm_head.weight"} if tie else set())
    for name, found in loaded["tensors"].items():
        exact = state[name] if found.ndim == 1 else state[name].half().float()
        assert torch.equal(found, exact), name
    config = loaded["config"]
    assert config["intermediate_size"] == 192
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert config["rms_norm_eps"] == pytest.approx(model.config.rms_norm_eps)
    assert config["tie_word_embeddings"] == tie


@given(heads=st.integers(1, 5), half=st.integers(1, 4), columns=st.integers(1, 3))
def test_rotary_rows_move_and_come_back(heads: int, half: int, columns: int) -> None:
    rows = heads * half * 2
    values = torch.arange(rows * columns).reshape(rows, columns)
    moved = permute_rotary(values, heads)
    assert torch.equal(undo_rotary(moved, heads), values)
    for head in range(heads):
        for pair in range(half):
            first = head * 2 * half
            assert torch.equal(moved[first + 2 * pair], values[first + pair])
            assert torch.equal(moved[first + 2 * pair + 1], values[first + half + pair])
    assert permute_rotary(values, 0) is values


def test_layers_that_differ_are_listed(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    pruning = {"structures": ["ffn_channels", "kv_groups"], "exports": ["gguf"], "sparsity": 0.35}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    report = run(spec, tmp_path)
    reader = GGUFReader(tmp_path / "out/gguf/model.gguf")

    def field(key: str) -> Any:
        found = reader.get_field(key)
        assert found is not None, key
        return found.contents()

    assert field("general.architecture") == "deci"
    assert field("general.name") == tiny_model.name
    assert field("deci.feed_forward_length") == [layer.width_after for layer in report.layers]
    assert field("deci.attention.head_count") == [each.query_heads_after for each in report.layers]
    assert field("deci.attention.head_count_kv") == [each.kv_heads_after for each in report.layers]
    assert len(set(field("deci.attention.head_count_kv"))) > 1
    shapes = {tensor.name: tuple(tensor.shape) for tensor in reader.tensors}
    for number, layer in enumerate(report.layers):  # GGUF lists columns first
        assert shapes[f"blk.{number}.attn_k.weight"] == (64, 16 * layer.kv_heads_after)
        assert shapes[f"blk.{number}.ffn_down.weight"] == (layer.width_after, 64)
    (export,) = report.exports
    assert export.bytes == (tmp_path / "out/gguf/model.gguf").stat().st_size


def test_sentencepiece_has_scores_instead_of_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    size = len(tokenizer["model"]["vocab"])
    model = make_tiny_llama(tmp_path / "model", vocab=size)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    written = write(model, tmp_path / "model.gguf")
    file = read_back(written)
    assert file.field("tokenizer.ggml.model") == "llama"
    assert file.field("tokenizer.ggml.add_space_prefix") is True
    reader = GGUFReader(written.path)
    assert reader.get_field("tokenizer.ggml.merges") is None
    scores = reader.get_field("tokenizer.ggml.scores")
    assert scores is not None
    assert len(scores.contents()) == size
    assert max(scores.contents()) == 0.0  # the first merge


def test_llama3_scaling_as_factors(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1)
    change_config(model, rope_parameters=LLAMA3)
    written = write(model, tmp_path / "model.gguf")
    rope = written.facts.config.blocks[0].rope
    assert rope is not None
    factors = rope_factors(rope, 16)
    assert factors is not None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(model), "cpu")
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    assert factors == pytest.approx(plain / scaled.numpy(), rel=1e-5)
    # By the definition of Llama 3.1: wavelengths of 2 pi 10000^(2i/16) positions.
    for pair, factor in enumerate(factors):
        wavelength = 2 * np.pi * 10000 ** (2 * pair / 16)
        if wavelength < 256 / 4:
            assert factor == 1.0
        elif wavelength > 256:
            assert factor == pytest.approx(8.0)
        else:
            smooth = (256 / wavelength - 1) / 3
            assert factor == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)
    assert len({float(factor) for factor in factors}) > 2
    (stored,) = [each for each in GGUFReader(written.path).tensors if each.name == ROPE_FACTORS]
    assert np.array_equal(stored.data, np.array(factors, dtype=np.float32))


def test_another_models_factors_are_noticed(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1)
    plain = inspect_model(LocalStore(model)).config
    change_config(model, rope_parameters=LLAMA3)
    written = write(model, tmp_path / "model.gguf")
    with pytest.raises(InvalidCheckpoint, match="rope_freqs"):
        GgufFile(written.path, plain)


def test_a_changed_value_is_noticed(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1)
    written = write(model, tmp_path / "model.gguf")
    data = bytearray(written.path.read_bytes())
    data[-40] ^= 1  # within the last tensor
    written.path.write_bytes(data)
    with pytest.raises(InvalidCheckpoint, match="not the one to be written"):
        read_back(written)


def test_values_too_large_for_float16(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalFailure, match=r"mlp\.up_proj") as failure:
        write(model, tmp_path / "model.gguf")
    assert "bfloat16" in str(failure.value.remedy)
    assert not (tmp_path / "model.gguf").exists()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, tiny_model: Path) -> None:
    write(tiny_model, tmp_path / "a.gguf")
    write(tiny_model, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_one_shape_is_a_plain_llama(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    pruning = {"layout": "uniform", "exports": ["gguf"]}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    run(spec, tmp_path)
    reader = GGUFReader(tmp_path / "out/gguf/model.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    config = inspect_model(LocalStore(tmp_path / "out")).config
    assert architecture(config) == "llama"
    assert reader.get_field("llama.feed_forward_length").contents() == config.ffn_channels // 4


def test_heads_that_are_gone_from_every_layer(tmp_path: Path, text_file: Path) -> None:
    """llama.cpp takes `key_length` for the width of a head, and not embedding_length / heads."""
    model = make_tiny_llama(tmp_path / "dense", heads=4, kv_heads=4)
    pruning = {
        "layout": "uniform",
        "structures": ["kv_groups"],
        "sparsity": 0.25,
        "exports": ["gguf"],
    }
    run(tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY), tmp_path)
    reader = GGUFReader(tmp_path / "out/gguf/model.gguf")

    def field(key: str) -> Any:
        found = reader.get_field(f"llama.{key}")
        assert found is not None
        return found.contents()

    assert reader.get_field("general.architecture").contents() == "llama"
    assert (field("attention.head_count"), field("attention.head_count_kv")) == (3, 3)
    assert (field("attention.key_length"), field("attention.value_length")) == (16, 16)
    assert (field("rope.dimension_count"), field("embedding_length")) == (16, 64)
    shapes = {each.name: tuple(int(size) for size in each.shape) for each in reader.tensors}
    assert shapes["blk.0.attn_q.weight"] == (64, 48)
    assert shapes["blk.0.attn_output.weight"] == (48, 64)
