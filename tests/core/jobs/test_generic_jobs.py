"""Whole jobs on architectures that run in transformers' own modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, StrucPruneError
from strucprune_core.export.loading import load_pretrained
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.generic.tiny import save_tiny

# A plain one; biases, and a tied head; a factor of the logits; ALiBi, and a fused query-key-value
# matrix; shared experts beside routed ones, and a plain first layer; a fused gate and up matrix;
# layers without an FFN, and an infinity in config.json; layers that are given more than hidden
# states; integers in a layer; several rows of a token.
ARCHITECTURES = ["olmo2", "starcoder2", "cohere", "bloom", "exaone_moe", "glm4", "nemotron_h"]
ARCHITECTURES += ["gemma3n_text", "deepseek_v4", "prophetnet"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp(request.param) / "model"
    return save_tiny(request.param, directory)


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("olmo2", tmp_path_factory.mktemp("olmo2") / "model")


def test_a_pruned_model_reloads(model: Path, text_file: Path, tmp_path: Path) -> None:
    """The job's own reload check has passed; here a user loads the result, by both ways."""
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.after.parameters < report.before.parameters
    assert report.sparsity.reached == pytest.approx(0.3, abs=0.03)
    assert report.before.kv_cache_bytes_per_token is None
    mine = load_pretrained(str(tmp_path / "out")).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    parameters = sum(each.numel() for each in theirs.parameters())
    buffers = sum(each.numel() for each in theirs.buffers())  # Some are stored, and counted.
    assert parameters <= report.after.parameters <= parameters + buffers
    tokens = torch.arange(5, 29).view(2, 12)
    with torch.inference_mode():
        assert torch.equal(mine(tokens).logits, theirs(tokens).logits)
        assert mine.generate(tokens, max_new_tokens=3, do_sample=False).shape == (2, 15)


def test_a_pruned_model_is_pruned_again(olmo2: Path, text_file: Path, tmp_path: Path) -> None:
    once = run(tiny_spec(olmo2, text_file, tmp_path / "a", evaluation=EASY), tmp_path / "1")
    again = tiny_spec(tmp_path / "a", text_file, tmp_path / "b", evaluation=EASY)
    twice = run(again, tmp_path / "2")
    assert twice.before.parameters == once.after.parameters
    assert twice.after.parameters < once.after.parameters
    loaded = load_pretrained(str(tmp_path / "b"))
    assert sum(each.numel() for each in loaded.parameters()) == twice.after.parameters


@pytest.mark.parametrize("name", ["olmo2", "gemma3", "qwen2_moe", "gpt_bigcode"])
def test_one_width_loads_in_the_own_class(name: str, text_file: Path, tmp_path: Path) -> None:
    """Also a decoder beside one that sees images, a shared expert, and a key that says nothing."""
    spec = tiny_spec(
        save_tiny(name, tmp_path / "model"),
        text_file,
        tmp_path / "out",
        pruning={"layout": "uniform", "multiple_of": 4},
        evaluation=EASY,
    )
    report = run(spec, tmp_path)
    assert len({layer.width_after for layer in report.layers}) == 1
    assert not list((tmp_path / "out").glob("*.py"))
    auto: Any = AutoModelForImageTextToText if name == "gemma3" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out")
    assert not type(model).__name__.startswith("StrucPrune")
    assert sum(each.numel() for each in model.parameters()) == report.after.parameters


@pytest.mark.parametrize(
    ("name", "match"), [("bloom", "no key"), ("exaone_moe", "no key"), ("pruned", "differ")]
)
def test_one_width_is_refused_where_no_class_has_it(
    name: str, match: str, olmo2: Path, text_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    if name == "pruned":
        run(tiny_spec(olmo2, text_file, model, evaluation=EASY), tmp_path / "1")
    else:
        save_tiny(name, model)
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning={"layout": "uniform"})
    with pytest.raises(InvalidSpec, match=match) as caught:
        run(spec, tmp_path / "2")
    assert caught.value.field == "pruning.layout"


# Norms behind the FFN; a parallel residual; a decoder beside one that sees images; layers without
# an FFN; two FFNs in a layer.
@pytest.mark.parametrize("name", ["olmo2", "stablelm", "gemma3", "nemotron_h", "longcat_flash"])
def test_layers_are_trained(name: str, text_file: Path, tmp_path: Path) -> None:
    """Energies from gradients, and recovery of each layer that has an FFN."""
    heads = {"num_key_value_heads": 4, "zero_expert_num": 1} if name == "longcat_flash" else {}
    model = save_tiny(name, tmp_path / "model", **heads)
    training = {"sparsity": 0.5, "energy": "gradient", "recover": {"steps": 20}}
    changes = {"pruning": training, "evaluation": EASY, "calibration": {"samples": 64}}
    spec = tiny_spec(model, text_file, tmp_path / "out", **changes)
    report = run(spec, tmp_path)
    trained = [layer.recovery for layer in report.layers if layer.sites]
    assert all(recovery is not None for recovery in trained)
    assert all(layer.recovery is None for layer in report.layers if not layer.sites)
    assert "accepted" in {recovery.status for recovery in trained if recovery is not None}


@pytest.mark.parametrize("name", ["stablelm", "gemma3", "openai-gpt"])
def test_the_model_writes_its_own_text(name: str, text_file: Path, tmp_path: Path) -> None:
    """With transformers' cache, and for a class that has none."""
    model = save_tiny(name, tmp_path / "model")
    calibration = {"source": "self", "uri": None, "sequence_length": 12}
    spec = tiny_spec(model, text_file, tmp_path / "out", calibration=calibration, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize("name", ["olmo2", "exaone_moe"])
def test_the_pruned_model_is_trained(name: str, text_file: Path, tmp_path: Path) -> None:
    """The loss falls; held-out text decides whether the trained weights are taken."""
    model = save_tiny(name, tmp_path / "model")
    training = {"sparsity": 0.5, "distill": {"steps": 12, "batch_sequences": 4}}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=training, evaluation=EASY)
    report = run(spec, tmp_path)
    assert report.distillation is not None
    assert sum(report.distillation.losses[-3:]) < sum(report.distillation.losses[:3])
    assert report.distillation.kl_after is not None
    better = report.distillation.kl_after < report.distillation.kl_before
    assert report.distillation.status == ("accepted" if better else "rejected")


def test_a_resumed_job_ends_with_the_same_bytes(
    olmo2: Path, text_file: Path, tmp_path: Path
) -> None:
    files: list[dict[str, bytes]] = []
    for name in ("once", "in parts"):
        root = tmp_path / name
        spec = tiny_spec(olmo2, text_file, root / "out", evaluation=EASY)
        if name == "in parts":
            with pytest.raises(Interrupted):
                run(spec, root, progress=interrupt_at(0.5))
        run(spec, root)
        files.append({p.name: p.read_bytes() for p in (root / "out").glob("*.safetensors")})
    assert files[0] == files[1]


class Interrupted(Exception):
    """Stands for a process that ends."""


def interrupt_at(fraction: float) -> Any:
    """A progress sink that ends the job after so large a share."""

    def sink(progress: Any) -> None:
        if progress.fraction >= fraction:
            raise Interrupted

    return sink


def test_what_is_not_implemented_is_refused_first(
    olmo2: Path, text_file: Path, tmp_path: Path
) -> None:
    heads = {"structures": ["kv_groups"]}
    with pytest.raises(InvalidSpec, match="'olmo2'") as caught:
        run(tiny_spec(olmo2, text_file, tmp_path / "out", pruning=heads), tmp_path)
    assert caught.value.field == "pruning.structures"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": 32}, "expects"),
        ({"num_hidden_layers": 5}, "expects"),
        ({"intermediate_size": 40}, "expects"),
        ({"num_attention_heads": 5}, "cannot|expects"),
        ({"num_key_value_heads": 3}, "cannot|expects"),
        ({"hidden_act": "no_such_function"}, "cannot build the model"),
        ({"rope_parameters": {"rope_type": "no_such_type"}}, "cannot"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "bitnet"}, "cannot be pruned: .*"),
        ({"model_type": "no_such_model"}, "has no language model of this name"),
    ],
)
def test_a_config_of_another_model_is_refused(
    olmo2: Path, text_file: Path, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    other = tmp_path / "model"
    other.mkdir()
    for file in olmo2.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(StrucPruneError, match=match):
        run(tiny_spec(other, text_file, tmp_path / "out"), tmp_path)
    assert not list((tmp_path / "out").glob("*"))


def test_a_config_names_no_code_that_is_run(olmo2: Path, text_file: Path, tmp_path: Path) -> None:
    """Neither a checkpoint's own modules nor kernels of a hub are fetched or run."""
    other = tmp_path / "model"
    other.mkdir()
    for file in olmo2.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "evil.py").write_text("raise SystemExit('code of the checkpoint was run')")
    config |= {
        "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
        "_attn_implementation": "no-such-owner/no-such-kernel",
        "attn_implementation": "no-such-owner/no-such-kernel",
        "experts_implementation": "no-such-owner/no-such-kernel",
    }
    (other / "config.json").write_text(json.dumps(config))
    report = run(tiny_spec(other, text_file, tmp_path / "out", evaluation=EASY), tmp_path)
    assert report.after.parameters < report.before.parameters


def test_a_tensor_that_the_modules_do_not_know_is_named(
    olmo2: Path, text_file: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "model"
    other.mkdir()
    for file in olmo2.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.extra.weight"] = torch.zeros(3, 3)
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"no tensor 'model\.layers\.1\.mlp\.extra"):
        run(tiny_spec(other, text_file, tmp_path / "out"), tmp_path)
