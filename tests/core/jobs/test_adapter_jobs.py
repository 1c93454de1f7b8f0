"""Jobs on a model with a LoRA adapter: the same as on the merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from strucprune_core.checkpoint import reader as reader_module
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, ObjectNotFound
from strucprune_core.plan.inspection import inspect_job, read_job_model
from strucprune_core.plan.pins import pinned_spec
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from tests.core.jobs.tiny_job import EASY, checkpoint_of, run, tiny_spec, without_card
from tests.support.fp8 import in_fp8

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "down_proj"],
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "fan_in_fan_out": False,
}


def adapter_for(model: Path, target: Path, **changes: Any) -> Path:
    """A random adapter of a llama model."""
    target.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for module in MODULES:
        outputs, inputs = load_file(model / "model.safetensors")[f"{module}.weight"].shape
        for name, shape in (("A", (4, inputs)), ("B", (outputs, 4))):
            values = 0.1 * torch.randn(shape, generator=generator)
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = values
    save_file(tensors, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    return target


def with_adapter(spec: JobSpec, adapter: Path) -> JobSpec:
    model = spec.model.model_copy(update={"adapter_uri": str(adapter)})
    return spec.model_copy(update={"model": model})


def weights(model: Path, adapter: Path, text: Path, output: Path) -> dict[str, Tensor]:
    """The tensors that a job on both reads, as they are stored."""
    spec = with_adapter(tiny_spec(model, text, output), adapter)
    index = read_job_model(spec, open_store).index
    reader = TensorReader(index)
    return {name: reader.tensor(name, dtype=None) for name in index.tensors}


@pytest.mark.parametrize("stabilised", [False, True])
def test_each_number_by_the_formula(
    tiny_model: Path, text_file: Path, tmp_path: Path, stabilised: bool
) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter", use_rslora=stabilised)
    found = weights(tiny_model, adapter, text_file, tmp_path / "out")
    pairs = load_file(adapter / "adapter_model.safetensors")
    for name, dense in load_file(tiny_model / "model.safetensors").items():
        expected = dense.double()
        module = name.removesuffix(".weight")
        if module in MODULES:
            down, up = (pairs[f"base_model.model.{module}.lora_{each}.weight"] for each in "AB")
            expected = expected + 12 / (2 if stabilised else 4) * up.double() @ down.double()
            assert not torch.equal(found[name], dense)
        assert torch.allclose(found[name].double(), expected, rtol=2e-7, atol=1e-7)


def test_numbers_do_not_depend_on_the_pieces(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter")
    whole = weights(tiny_model, adapter, text_file, tmp_path / "out")
    monkeypatch.setattr(reader_module, "PIECE_BYTES", 1)
    rows = weights(tiny_model, adapter, text_file, tmp_path / "out")
    assert all(torch.equal(whole[name], rows[name]) for name in whole)


def merged_by_peft(model: Path, adapter: Path, target: Path, settings: dict[str, Any]) -> Path:
    """Train nothing, but give what is trained random values; the model as PEFT merges it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(model)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                value.normal_(std=0.1)
    wrapped.save_pretrained(adapter)
    # Read again: the keys of patterns are then in another order, as files have them sorted.
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    again.merge_and_unload().save_pretrained(target)
    return target


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed.
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_merges_alike(tiny_model: Path, text_file: Path, tmp_path: Path, family: str) -> None:
    model, targets = tiny_model, ["q_proj", "k_proj", "o_proj", "down_proj"]
    if family == "gpt2":
        config = GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=512)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        model, targets = tmp_path / "gpt2", ["c_attn", "c_proj", "c_fc"]
        shutil.copy(tiny_model / "tokenizer.json", model)
    settings = {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": targets}
    settings["rank_pattern"] = {targets[-1]: 5}
    # The first key that matches counts.
    settings["alpha_pattern"] = {
        "llama": {"^model.layers.1.self_attn.k_proj": 2.5, "q_proj": 3, "self_attn.q_proj": 9},
        "gpt2": {"^transformer.h.1.attn.c_attn": 2.5, "mlp.c_proj": 3, r"0\.mlp.c_proj": 9},
    }[family]
    settings["bias"] = "all" if family == "gpt2" else "none"
    settings["fan_in_fan_out"] = family == "gpt2"
    adapter = tmp_path / "adapter"
    theirs = merged_by_peft(model, adapter, tmp_path / "theirs", settings)
    found = weights(model, adapter, text_file, tmp_path / "out")
    expected = load_file(theirs / "model.safetensors")
    dense = load_file(model / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-7), name
    assert sum(not torch.equal(found[name], dense[name]) for name in dense) >= 8


UNTIED: dict[str, dict[str, Any]] = {
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "whole modules": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens", "norm"],
    },
    "whole and added": {
        "target_modules": ["o_proj", "embed_tokens"],
        "modules_to_save": ["lm_head"],
        "alpha_pattern": {"embed_tokens": 3},
    },
}


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose head is not its embedding, in bfloat16."""
    target = tmp_path_factory.mktemp("untied") / "model"
    config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    torch.manual_seed(2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    shutil.copy(tiny_model / "tokenizer.json", target)
    return target


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*embedding layers.*:UserWarning")
@pytest.mark.parametrize("settings", UNTIED.values(), ids=UNTIED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings_and_whole_modules(
    untied: Path, text_file: Path, tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(untied, dtype=dtype).save_pretrained(model)
    shutil.copy(untied / "tokenizer.json", model)
    adapter = tmp_path / "adapter"
    theirs = merged_by_peft(model, adapter, tmp_path / "theirs", {"r": 4, **settings})
    found = weights(model, adapter, text_file, tmp_path / "out")
    expected, dense = (load_file(each / "model.safetensors") for each in (theirs, model))
    assert found.keys() == expected.keys()
    # PEFT rounds the product to bfloat16 before it is added.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    for name, value in expected.items():
        assert found[name].dtype == value.dtype == dtype
        assert torch.allclose(found[name], value, rtol=tolerance, atol=tolerance / 8), name
    changed = {name.split(".")[-2] for name in dense if not torch.equal(found[name], dense[name])}
    named = {*settings["target_modules"], *settings.get("modules_to_save", ())}
    assert {each.removeprefix("input_").removeprefix("post_attention_") for each in changed} <= {
        *named,
        "layernorm",
    }
    assert named <= changed


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_report_names_the_adapter(untied: Path, text_file: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}
    merged_by_peft(untied, adapter, tmp_path / "theirs", settings)
    spec = with_adapter(tiny_spec(untied, text_file, tmp_path / "out", evaluation=EASY), adapter)
    index = read_job_model(spec, open_store).index
    report = run(spec, tmp_path / "run")
    named = report.model.adapter
    assert named is not None
    assert (named.uri, named.rank, named.alpha) == (str(adapter), 4, 6.0)
    assert index.adapter is not None
    assert named.version == index.adapter.version
    layers = range(report.model.layers)
    assert named.modules == [f"model.layers.{n}.self_attn.q_proj" for n in layers]
    assert "model.norm.weight" in named.replaced
    assert report.before.bytes == (untied / "model.safetensors").stat().st_size
    assert 2 * report.after.parameters < report.after.bytes < 2.1 * report.after.parameters + 2**14
    page = (tmp_path / "out/report.html").read_text()
    assert named.version in page
    assert "r 4, alpha 6" in page


def test_bytes_count_as_if_the_model_had_the_tensors(
    untied: Path, text_file: Path, tmp_path: Path
) -> None:
    """Though the adapter has the embedding in twice as many bytes as the model."""
    adapter = adapter_for(untied, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    embedding = load_file(untied / "model.safetensors")["model.embed_tokens.weight"].float()
    save_file({**load_file(file), "base_model.model.model.embed_tokens.weight": embedding}, file)
    spec = tiny_spec(untied, text_file, tmp_path / "out")
    plain, merged = (
        read_job_model(each, open_store).index for each in (spec, with_adapter(spec, adapter))
    )
    assert merged.read_bytes == plain.read_bytes


@pytest.mark.parametrize("output", ["", "below"])
@pytest.mark.parametrize("adapter", ["", "below"])
def test_the_output_is_apart_from_the_adapter(
    tiny_model: Path, text_file: Path, tmp_path: Path, output: str, adapter: str
) -> None:
    (tmp_path / "place").mkdir()
    place = tmp_path / "place" / adapter
    if adapter:
        adapter_for(tiny_model, place)
    else:
        adapter_for(tiny_model, tmp_path / "other").rename(place)
    spec = tiny_spec(tiny_model, text_file, tmp_path / "place" / output)
    with pytest.raises(
        InvalidSpec, match=r"the output .* adapter's|adapter's .* the output"
    ) as why:
        inspect_job(with_adapter(spec, place), open_store)
    assert why.value.field == "output.uri_prefix"


@pytest.mark.parametrize("quantised", [False, True])
def test_the_result_is_that_of_the_merged_model(
    tiny_model: Path, text_file: Path, tmp_path: Path, quantised: bool
) -> None:
    model = tiny_model
    if quantised:
        model = in_fp8(tiny_model, tmp_path / "fp8", "channel")
    adapter = adapter_for(tiny_model, tmp_path / "adapter")
    plain = Path(shutil.copytree(tiny_model, tmp_path / "plain"))
    spec = with_adapter(tiny_spec(model, text_file, tmp_path / "out"), adapter)
    index = read_job_model(spec, open_store).index
    save_file(weights(model, adapter, text_file, tmp_path / "out"), plain / "model.safetensors")
    (plain / "config.json").write_bytes(index.config_bytes)
    report = run(spec, tmp_path / "run")
    expected = run(tiny_spec(plain, text_file, tmp_path / "expected"), tmp_path / "run-2")
    merged, by_hand = (checkpoint_of(tmp_path / name) for name in ("out", "expected"))
    assert without_card(merged) == without_card(by_hand)
    assert report.perplexity == expected.perplexity
    alone = tiny_spec(model, text_file, tmp_path / "out")
    assert alone.result_fingerprint() != spec.result_fingerprint()


def test_another_adapter_is_another_model(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter")
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), adapter)
    before = read_job_model(spec, open_store).index.version()
    file = adapter / "adapter_model.safetensors"
    changed = {name: 2 * value for name, value in load_file(file).items()}
    save_file(changed, file)
    assert read_job_model(spec, open_store).index.version() != before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "another kind": ({"peft_type": "IA3"}, "IA3"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "a bias of B": ({"lora_bias": True}, "lora_bias"),
    "alpha by expressions": ({"alpha_pattern": {"(a+)+b": 3}}, "not a module's name"),
    "alpha without number": ({"alpha_pattern": {"q_proj": "3"}}, "alpha_pattern is '3'"),
    "no map of alphas": ({"alpha_pattern": [3]}, "not a map"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "changes the base model"),
    "unheard of": ({"use_something": True}, "use_something"),
    "another rank": ({"r": 8}, "has rank 4, but r is 8"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha"),
    "no rank": ({"r": 0}, "not a rank"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_other_adapters_are_refused(
    tiny_model: Path, text_file: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter", **changes)
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), adapter)
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        inspect_job(spec, open_store)
    assert caught.value.field == "model.adapter_uri"
    assert "merge_and_unload" in str(caught.value.remedy)


TENSORS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "no such module": ("model.layers.9.mlp.up_proj.lora_A.weight", (4, 64), "no A and B"),
    "half of an embedding": ("model.embed_tokens.lora_embedding_A", (4, 512), "no A and B"),
    "a magnitude": (f"{MODULES[0]}.lora_magnitude_vector", (64,), "neither part of a LoRA pair"),
    "a bias of B": (f"{MODULES[0]}.lora_B.bias", (64,), "neither part of a LoRA pair"),
    "a tied matrix": ("model.embed_tokens.weight", (512, 64), "which share it"),
    "a larger norm": ("model.norm.weight", (65,), "shape .65,., but the base model's has"),
    "an unknown bias": ("model.norm.bias", (64,), "is not in the base model"),
    "a shape": (f"{MODULES[0]}.lora_A.weight", (4, 63), "product of shape"),
    "a rank": (f"{MODULES[0]}.lora_A.weight", (3, 64), "of one rank"),
}


@pytest.mark.parametrize(("name", "shape", "reason"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit(
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
    name: str,
    shape: tuple[int, ...],
    reason: str,
) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{name}": torch.ones(shape)}, file)
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), adapter)
    with pytest.raises(InvalidCheckpoint, match=reason):
        inspect_job(spec, open_store)


def test_a_tied_embedding_is_not_changed(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    adapter = adapter_for(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    pair = {"A": torch.ones(4, 64), "B": torch.ones(512, 4)}
    prefix = "base_model.model.model.embed_tokens.lora_"
    save_file({f"{prefix}{each}.weight": value for each, value in pair.items()}, file)
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), adapter)
    with pytest.raises(InvalidCheckpoint, match="which share it"):
        inspect_job(spec, open_store)


def test_an_adapter_of_a_hub_is_pinned(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), Path("adapter"))
    pinned = pinned_spec(spec, lambda uri: f"{uri}@commit" if uri == "adapter" else uri)
    assert pinned.model.adapter_uri == "adapter@commit"
    assert pinned.model.uri == spec.model.uri


def test_no_adapter_there(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = with_adapter(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path / "nothing")
    with pytest.raises(ObjectNotFound, match=r"adapter_config\.json") as caught:
        inspect_job(spec, lambda uri: LocalStore(Path(uri)))
    assert caught.value.field == "model.adapter_uri"
