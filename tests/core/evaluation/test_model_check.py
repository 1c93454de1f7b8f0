"""The dense reload check: we make of a user's files what transformers makes of them, or refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from strucprune_core.checkpoint.file_names import SHARD_INDEX
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.errors import InvalidCheckpoint, StrucPruneError, UnsupportedArchitecture
from strucprune_core.evaluation.model_check import check_model, layers_to_run
from strucprune_core.evaluation.standalone import evaluate_model
from strucprune_core.export.loading import load_pretrained
from strucprune_core.models import families
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.own_head import with_own_head
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.tiles import MODEL_CHECK_LAYERS
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, files_of, run, tiny_spec
from tests.core.models.config_keys import FAMILIES, changes_of, model_of
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.reference import open_stream, random_tokens, reference_logits
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama, save_tokenizer


def check(directory: Path, config: ModelConfig | None = None, length: int = 64) -> dict[str, Any]:
    """Check a model as a job does, or as if we had read its config.json as `config`."""
    index = open_checkpoint(LocalStore(directory))
    stream = open_stream(directory)
    stream = replace(stream, config=config or with_own_head(stream.config, index, lambda: None))
    names = set(index.tensors)
    return check_model(
        stream, index.config_bytes, names, 0, lambda: None, sequences=2, length=length
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_passes(variant: str, tmp_path: Path) -> None:
    random_model(variant).save_pretrained(tmp_path)
    result = check(tmp_path)
    assert result["reference"].startswith("transformers ")
    assert result["max_relative_difference"] < 3e-6 < result["tolerance"]
    layers = open_stream(tmp_path).config.layers
    assert {0, layers - 1} <= set(result["layers"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_is_overlooked_is_noticed(family: str, tmp_path: Path) -> None:
    """For each key with an effect: our reading of config.json without it, on the model with it."""
    overlooked, noticed = [], 0
    for number, changes in enumerate(changes_of(family)):
        model = model_of(family, changes)
        default = model_of(family, {})
        if model is None or default is None:
            continue
        directory = tmp_path / str(number)
        model.save_pretrained(directory)
        default.config.save_pretrained(directory / "default")
        raw = json.loads((directory / "default/config.json").read_bytes())
        without = parse_config(raw)
        try:
            right = open_stream(directory).config
        except StrucPruneError:
            continue  # refused for what the key says
        same_tensors = expected_tensors(without) == expected_tensors(right)
        if not same_tensors or without == replace(right, model_type=without.model_type):
            continue
        if without == replace(right, max_position_embeddings=without.max_position_embeddings):
            continue  # a longer context changes nothing within the shorter one
        try:
            check(directory, without)
            overlooked.append(changes)
        except UnsupportedArchitecture:
            noticed += 1
    assert not overlooked
    assert noticed


def test_what_runs_is_the_first_the_last_and_one_of_each_kind() -> None:
    assert layers_to_run(["a"]) == [0]
    assert layers_to_run(["a"] * 9) == [0, 8]
    assert layers_to_run(["a", "a", "b", "a", "b", "a"]) == [0, 2, 5]
    many = layers_to_run([str(number) for number in range(40)])
    assert len(many) == MODEL_CHECK_LAYERS
    assert {0, 39} <= set(many)


def test_only_what_runs_is_read(tmp_path: Path) -> None:
    """A NaN in a layer between is none of this check's business."""
    make_tiny_llama(tmp_path, layers=5)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][:] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    assert check(tmp_path)["layers"] == [0, 4]


def misread(change: Callable[[ModelConfig], ModelConfig]) -> Callable[[RawConfig], ModelConfig]:
    """A parser of llama's config.json with a mistake."""
    right = families.FAMILIES["llama"]
    return lambda raw: change(right(raw))


def last_block(config: ModelConfig) -> ModelConfig:
    *blocks, last = config.blocks
    return config.with_blocks([*blocks, replace(last, window=4)])


MISTAKES: dict[str, tuple[Callable[[ModelConfig], ModelConfig], str, int | None]] = {
    "norm": (lambda c: replace(c, norm=replace(c.norm, eps=1e-3)), "layer 0", 0),
    "activation": (lambda c: replace(c, activation="gelu"), "layer 0", 0),
    "embedding": (lambda c: replace(c, embedding_scale=1.01), "embeddings", None),
    "window": (last_block, "layer 3", 3),
    "cap": (lambda c: replace(c, logit_soft_cap=2.0), "logits", None),
}


@pytest.mark.parametrize(("mistake", "where", "layer"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_reading_fails_the_job_before_any_work(
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[ModelConfig], ModelConfig],
    where: str,
    layer: int | None,
) -> None:
    monkeypatch.setitem(families.FAMILIES, "llama", misread(mistake))
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out")
    with pytest.raises(
        UnsupportedArchitecture, match=f"compute different values for .*{where}"
    ) as caught:
        run(spec, tmp_path)
    error = caught.value
    assert (error.field, error.layer, error.phase) == ("model.uri", layer, "inspecting")
    assert not error.retryable
    assert error.remedy
    assert not list((tmp_path / "workspace").glob("units/*"))
    assert files_of(tmp_path / "out") == {}


def with_another_head(variant: str, directory: Path, **config: Any) -> torch.Tensor:
    """Save a tied model that has a head of its own all the same; the head."""
    model = random_model(variant)
    model.save_pretrained(directory)
    save_tokenizer(directory, text=make_text(), vocab=model.config.vocab_size)
    raw = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(
        json.dumps({**raw, "tie_word_embeddings": True, **config})
    )
    tensors = load_file(directory / "model.safetensors")
    names = open_stream(directory).config.names
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(tensors[names.embedding].shape, generator=generator)
    save_file({**tensors, names.head: head}, directory / "model.safetensors", {"format": "pt"})
    return head


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize(
    "variant", ["llama", "qwen3", "gemma2", "gemma3", "phi3", "opt-350m", "gpt2", "gpt_neox-serial"]
)
def test_a_head_of_its_own_is_kept_as_transformers_keeps_it(
    variant: str, layout: str, tmp_path: Path, text_file: Path
) -> None:
    model = tmp_path / "model"
    head = with_another_head(variant, model)
    dense = AutoModelForCausalLM.from_pretrained(model)
    assert torch.equal(dense.get_output_embeddings().weight, head)
    pruning = {"layout": layout, "sparsity": 0.5 if layout == "uniform" else 0.3}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    assert any("ties the head" in warning for warning in report.warnings)
    assert report.before.parameters == sum(p.numel() for p in dense.parameters())
    written = json.loads((tmp_path / "out/config.json").read_bytes())
    assert written["tie_word_embeddings"] is False
    pruned = load_pretrained(str(tmp_path / "out"))
    assert torch.equal(pruned.get_output_embeddings().weight, head)
    assert not torch.equal(pruned.get_input_embeddings().weight, head)
    assert report.after.parameters == sum(p.numel() for p in pruned.parameters())


def test_a_head_of_its_own_counts_in_perplexity(tmp_path: Path, text_file: Path) -> None:
    model = tmp_path / "model"
    with_another_head("llama", model)
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY)
    found = run(spec, tmp_path).perplexity
    assert found is not None
    result = evaluate_model(
        str(model),
        str(text_file),
        sequences=2,
        sequence_length=32,
        device="cpu",
        micro_batch_tokens=64,
        tick=lambda share: None,
    )
    assert result["perplexity"] == pytest.approx(found.before, rel=1e-6)


def test_a_head_that_is_stored_twice_stays_tied(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors")
    report = run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert report.warnings == []
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")
    assert json.loads((tmp_path / "out/config.json").read_bytes())["tie_word_embeddings"] is True


def test_a_head_that_differs_in_one_number_is_another(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path)
    tensors = load_file(model / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": head}, model / "model.safetensors", {"format": "pt"})
    index = open_checkpoint(LocalStore(model))
    config = parse_config(index.config)
    assert config.tie_word_embeddings
    assert not with_own_head(config, index, lambda: None).tie_word_embeddings
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokens = random_tokens(1, 8)
    assert reference_logits(loaded, tokens).isfinite().all()
    assert torch.equal(loaded.get_output_embeddings().weight, head)


def test_a_tied_head_of_another_shape_is_refused(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(7, 64)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"lm_head.*\(7, 64\)"):
        run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)


def test_a_tensor_that_the_index_does_not_name_counts(tmp_path: Path, text_file: Path) -> None:
    """transformers loads all that the shards hold."""
    model = make_tiny_llama(tmp_path / "model", max_shard_size="300KB")
    index = json.loads((model / SHARD_INDEX).read_bytes())
    shard = model / index["weight_map"]["model.norm.weight"]
    tensors = load_file(shard)
    head = torch.randn(512, 64, generator=torch.Generator().manual_seed(1))
    save_file({**tensors, "lm_head.weight": head}, shard, {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert torch.equal(loaded.get_output_embeddings().weight, head)
    run(tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    pruned = load_pretrained(str(tmp_path / "out"))
    assert torch.equal(pruned.get_output_embeddings().weight, head)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path, max_shard_size="300KB")
    index = json.loads((model / SHARD_INDEX).read_bytes())
    first, other = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, file in index["weight_map"].items() if file == first)
    doubled = {**load_file(model / other), name: load_file(model / first)[name] * 2}
    save_file(doubled, model / other)
    with pytest.raises(InvalidCheckpoint, match="is in two files"):
        open_checkpoint(LocalStore(model))


def test_other_weights_than_the_usual_ones_are_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path)
    config = json.loads((model / "config.json").read_bytes())
    named = {**config, "transformers_weights": "other.safetensors"}
    (model / "config.json").write_text(json.dumps(named))
    with pytest.raises(InvalidCheckpoint, match=r"transformers_weights.*other\.safetensors"):
        open_checkpoint(LocalStore(model))
    (model / "config.json").write_text(json.dumps(config))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidCheckpoint, match="adapter") as caught:
        open_checkpoint(LocalStore(model))
    assert "merge" in (caught.value.remedy or "").lower()
