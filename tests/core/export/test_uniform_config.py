"""Heads removed in layout `uniform`: config.json names a class that can have so many."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
)

from strucprune_core.errors import InvalidSpec
from strucprune_core.export import modeling_strucprune
from strucprune_core.export.uniform_config import loading_family, uniform_config
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.structures import shrink
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import SHAPE, VARIANTS, saved
from tests.core.models.reference import ROPES, random_tokens, reference_logits

PRUNED: Any = modeling_strucprune  # Untyped: it travels with checkpoints.
GROUPS = {
    "sparsity": 0.25,
    "structures": ["ffn_channels", "kv_groups"],
    "layout": "uniform",
    "exports": ["gguf"],
}
EXPORTS = {"default", "llama3", "linear"}


def dense(variant: str, **changes: Any) -> ModelConfig:
    """A variant as our own code reads it, with what transformers leaves out of its config.json."""
    config_class, options = VARIANTS[variant]
    written = config_class(**options).to_dict()
    return parse_config({**written, **changes})


def with_heads(model: ModelConfig, groups: int) -> ModelConfig:
    """The model with so many key-value heads in every layer, and as many query heads for each."""
    kinds = ["ffn_channels", "kv_groups"]
    return model.with_blocks(
        [shrink(block, {"attention": groups}, kinds) for block in model.blocks]  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("variant", "loads"),
    [
        ("llama-mha", {1: "llama", 2: "llama", 3: "mistral", 4: "llama"}),
        ("mistral", {1: "mistral", 2: "mistral"}),
        ("qwen2", {1: "qwen2", 2: "qwen2"}),
        ("qwen3", {1: "qwen3", 2: "qwen3"}),
        ("gemma2", {1: "gemma2", 2: "gemma2"}),
        ("phi3", {1: "phi3", 2: "phi3"}),
        ("phi3-long", {1: None, 2: "phi3"}),
        ("opt", {1: None, 2: None, 3: None, 4: "opt"}),
        ("gpt2", {1: None, 2: None, 3: None, 4: "gpt2"}),
        ("gpt_neox", {1: None, 2: None, 3: None, 4: "gpt_neox"}),
        ("mixtral", {1: "mixtral", 2: "mixtral"}),
        ("qwen3_moe", {1: "qwen3_moe", 2: "qwen3_moe"}),
    ],
)
def test_the_family_whose_class_has_so_many_heads(
    variant: str, loads: dict[int, str | None]
) -> None:
    model = dense(variant)
    assert {count: loading_family(with_heads(model, count)) for count in loads} == loads


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "llama-biases"])
def test_no_other_class_computes_as_these(variant: str) -> None:
    """A multiple of the heads they must have, and mistral has neither biases nor their norms."""
    model = dense(variant, num_attention_heads=6, num_key_value_heads=3, hidden_size=36)
    assert loading_family(with_heads(model, 1)) == model.family
    assert loading_family(with_heads(dense(variant, hidden_size=36, num_key_value_heads=4), 3))
    wide = dense(variant, num_attention_heads=5, num_key_value_heads=5, hidden_size=40)
    assert loading_family(with_heads(wide, 3)) is None


def test_a_llama_is_told_what_a_mistral_would_assume_otherwise() -> None:
    """Where defaults differ, config.json of a mistral says the llama's."""
    llama, mistral = LlamaConfig().to_dict(), MistralConfig().to_dict()
    ours = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
    ours |= {"num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 32000}
    written = uniform_config(dict(ours), with_heads(parse_config(ours), 31))
    read = MistralConfig.from_dict(written).to_dict()
    shared = (llama.keys() & mistral.keys()) - ours.keys()
    shared -= {"head_dim", "num_key_value_heads", "architectures", "transformers_version"}
    assert {key: read[key] for key in shared} == {key: llama[key] for key in shared}
    assert (read["head_dim"], read["num_key_value_heads"]) == (128, 31)
    assert read["sliding_window"] is None


def test_keys_of_a_llama_alone_are_left_out() -> None:
    config = LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}).to_dict()
    config |= {"layer_types": ["full_attention"] * 3, "sliding_window": 3}
    written = uniform_config(dict(config), with_heads(parse_config(config), 3))
    assert not {"attention_bias", "mlp_bias", "pretraining_tp", "layer_types"} & set(written)
    assert written["sliding_window"] is None
    assert parse_config(written).blocks[0].query_heads == 3


def llama(tmp_path: Path, rope: str) -> Path:
    """A llama whose heads, once one of four is gone, do not divide the hidden size."""
    options = {**SHAPE, "num_key_value_heads": 4, "rope_parameters": ROPES[rope]}
    return saved(LlamaConfig(**options), tmp_path / "dense")


def pruned(model: Path, text_file: Path, tmp_path: Path, rope: str) -> Report:
    exports = ["gguf"] if rope in EXPORTS else []
    pruning = {**GROUPS, "exports": exports}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    assert estimate_job(spec, inspect_model(LocalStore(model))).warnings[:1] == WARNED
    return run(spec, tmp_path)


WARNED = [
    "pruning.layout: config.json of the result names the model type 'mistral'. transformers' llama "
    "cannot have 3 query heads with a hidden size of 32; mistral can, and computes the same."
]


@pytest.mark.parametrize("rope", ROPES)
def test_a_llama_with_heads_that_llama_cannot_have(
    text_file: Path, tmp_path: Path, rope: str
) -> None:
    """transformers' mistral computes to the bit what its llama would with these heads."""
    report = pruned(llama(tmp_path, rope), text_file, tmp_path, rope)
    assert report.warnings[:1] == WARNED
    out = tmp_path / "out"
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    assert type(loaded) is MistralForCausalLM
    assert sum(p.numel() for p in loaded.parameters()) == report.after.parameters

    config = PRUNED.StrucPruneLlamaConfig(
        **{**json.loads((tmp_path / "dense" / "config.json").read_text()), "model_type": "x"}
    )
    layers = [
        {"ffn": [each.width_after], "query_heads": 3, "kv_heads": 3} for each in report.layers
    ]
    config.strucprune = {"format_version": 2, "layers": layers}
    intended = PRUNED.StrucPruneLlamaForCausalLM(config)
    intended.load_state_dict(load_file(out / "model.safetensors"))
    tokens = random_tokens(2, 100, 512)  # Longer than the original contexts above.
    assert torch.equal(
        reference_logits(loaded.eval(), tokens), reference_logits(intended.eval(), tokens)
    )


def with_many_tokens(tokenizer_json: Path) -> None:
    """As many as llama 3 has: transformers looks at such tokenizers alone."""
    found = json.loads(tokenizer_json.read_text())
    vocabulary = found["model"]["vocab"]
    first = max(vocabulary.values()) + 1
    found["model"]["vocab"] = vocabulary | {f"rare{i}": i for i in range(first, 100_500)}
    tokenizer_json.write_text(json.dumps(found))


def test_its_tokenizer_is_the_dense_models(
    text_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And transformers does not advise to repair it, as for early models of Mistral's own."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = llama(tmp_path, "default")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "4.40.0"}))
    pruned(model, text_file, tmp_path, "default")
    text = text_file.read_text()[:3000] + " 12345 isn't\n\n  it?"
    tokens = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    with_many_tokens(tmp_path / "out" / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer(text)["input_ids"] == tokens
    assert "incorrect regex" not in caplog.text


def test_it_can_be_pruned_again(text_file: Path, tmp_path: Path) -> None:
    pruned(llama(tmp_path, "default"), text_file, tmp_path, "default")
    spec = tiny_spec(
        tmp_path / "out",
        text_file,
        tmp_path / "again",
        pruning={"sparsity": 0.3, "structures": ["kv_groups"], "layout": "uniform"},
        evaluation=EASY,
    )
    report = run(spec, tmp_path / "second")
    assert report.layers[0].query_heads_after == 2
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["model_type"], again["num_attention_heads"]) == ("mistral", 2)


def test_heads_of_layers_cut_before_are_looked_at_too(text_file: Path, tmp_path: Path) -> None:
    """Once they are gone, a job on channels alone cannot make the family's class load the rest."""
    config_class, options = VARIANTS["opt"]
    first = tiny_spec(
        saved(config_class(**options), tmp_path / "dense"),
        text_file,
        tmp_path / "first",
        pruning={"sparsity": 0.25, "structures": ["kv_groups"], "max_layer_sparsity": 0.25},
        evaluation=EASY,
    )
    run(first, tmp_path)
    written = json.loads((tmp_path / "first" / "config.json").read_text())
    for layer in written["strucprune"]["layers"]:
        assert layer["query_heads"] == 3
    spec = tiny_spec(
        tmp_path / "first",
        text_file,
        tmp_path / "second",
        pruning={"layout": "uniform"},
        evaluation=EASY,
    )
    with pytest.raises(InvalidSpec, match="cannot have 3 query heads"):
        run(spec, tmp_path / "again")
