"""Whole jobs that remove experts: what goes, what transformers' own class makes of the rest."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, Stopped, UnsupportedArchitecture
from strucprune_core.evaluation import experts_check
from strucprune_core.evaluation.standalone import verify_checkpoint
from strucprune_core.export.loading import load_pretrained
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import experts_of, first_experts, routing_of
from strucprune_core.models.generic.names import ParameterNames
from strucprune_core.models.generic.routed import NEVER_CHOSEN, masking
from strucprune_core.plan.estimate import estimate_job, size_of
from strucprune_core.plan.inspection import examine_job, inspect_model
from strucprune_core.plan.work import active_weights
from strucprune_core.report.document import ExpertsReport, Report
from strucprune_core.run.layer_updates import LayerSink, LayerUpdate, ignore_layers, merged
from strucprune_core.run.report_warnings import LARGE_DIVERGENCE
from strucprune_core.spec import JobSpec, RuntimeSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import (
    EASY,
    StopOnceFinished,
    checkpoint_of,
    files_of,
    run,
    tiny_spec,
)
from tests.support.tiny_experts import EXPERTS, save_tiny_experts
from tests.support.tiny_llama import make_tiny_llama

# Tensors of each expert, in a family that is written out; the same with other names; one tensor for
# all experts, router and experts with biases, transposed; one tensor for all; groups of experts, a
# plain first layer and shared experts.
ARCHITECTURES = ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "deepseek_v3"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_experts(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_experts("gpt_oss", tmp_path_factory.mktemp("gpt_oss") / "model")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_experts("mixtral", tmp_path_factory.mktemp("mixtral") / "model")


def without_experts(
    model: Path, text: Path, root: Path, layers: LayerSink = ignore_layers, **pruning: Any
) -> Report:
    """Run a job that removes a quarter of the experts."""
    spec = tiny_spec(
        model,
        text,
        root / "out",
        pruning={"sparsity": 0.25, "structures": ["experts"], **pruning},
        evaluation=EASY,
    )
    return run(spec, root, layers=layers)


def loaded(directory: Path) -> Any:
    """A checkpoint as users load it: no code but transformers' own."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.")
    return model.eval()


def of_layers(report: Report) -> dict[int, ExpertsReport]:
    return {each.index: each.experts for each in report.layers if each.experts is not None}


def kept(experts: ExpertsReport) -> list[int]:
    return [number for number in range(experts.before) if number not in experts.removed]


def expert_modules(model: Any) -> dict[int, Any]:
    """The module of experts of each layer."""
    return {
        number: module
        for number, layer in enumerate(model.model.layers)
        for module in layer.modules()
        if hasattr(module, "has_gate")
    }


def test_what_stays_is_the_dense_models(model: Path, text_file: Path, tmp_path: Path) -> None:
    report = without_experts(model, text_file, tmp_path)
    dense, pruned = loaded(model), loaded(tmp_path / "out")
    assert type(dense) is type(pruned)
    experts = of_layers(report)
    assert len(experts) == len(expert_modules(dense)) > 0
    assert {each.after for each in experts.values()} == {6}
    assert report.sparsity.experts_removed == 2 * len(experts)
    assert report.sparsity.reached == 0.25
    whole, left = dense.state_dict(), pruned.state_dict()
    cut = 0
    for name, tensor in whole.items():
        if tensor.shape == left[name].shape:
            assert torch.equal(tensor, left[name]), name
            continue
        number = int(name.split(".")[2])
        (axis,) = (at for at, size in enumerate(tensor.shape) if size != left[name].shape[at])
        stay = torch.tensor(kept(experts[number]))
        assert torch.equal(tensor.index_select(axis, stay), left[name]), name
        cut += tensor.numel() - left[name].numel()
    assert report.sparsity.parameters_removed == cut
    assert report.after.parameters == report.before.parameters - cut
    page = (tmp_path / "out/report.html").read_text()
    assert f"removed {2 * len(experts)} of {EXPERTS * len(experts)} routed experts" in page
    assert "Kept experts" in page
    tokens = torch.arange(5, 29).view(2, 12)
    assert pruned.generate(tokens, max_new_tokens=3, do_sample=False).shape == (2, 15)


@pytest.mark.parametrize("score", ["output_norm", "reap"])
def test_scores_are_means_over_the_tokens_of_an_expert(
    model: Path, text_file: Path, tmp_path: Path, score: str
) -> None:
    """Each expert of the whole model is asked for its output alone, by transformers' own code."""
    report = without_experts(model, text_file, tmp_path, expert_score=score)
    dense = loaded(model)
    windows = calibration_of(tmp_path)[:7]  # The eighth sequence is held out.
    given: dict[int, tuple[torch.Tensor, ...]] = {}

    def keep(number: int) -> Any:
        return lambda _, arguments: given.update({number: arguments})

    modules = expert_modules(dense)
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in modules.items()]
    with torch.inference_mode():
        dense(input_ids=torch.from_numpy(windows).long(), use_cache=False)
    for handle in handles:
        handle.remove()
    for number, experts in of_layers(report).items():
        hidden, chosen, weights = given[number]
        for expert in range(EXPERTS):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            assert experts.calibration_tokens[expert] == len(tokens)
            alone, ones = torch.full((len(tokens), 1), expert), torch.ones(len(tokens), 1)
            with torch.inference_mode():
                norms = modules[number](hidden[tokens], alone, ones).double().norm(dim=-1)
            wanted = norms.square() if score == "output_norm" else weights[tokens, place] * norms
            assert experts.scores[expert] == pytest.approx(float(wanted.mean()), rel=1e-4)
        worst = sorted(range(EXPERTS), key=lambda expert: experts.scores[expert])
        if routing_of(read(model)).groups == 1:
            assert experts.removed == sorted(worst[:2])
        else:
            lowest = [next(e for e in worst if e // 4 == group) for group in (0, 1)]
            assert experts.removed == lowest


def calibration_of(root: Path) -> Any:
    """The calibration windows of the job that ran under `root`."""
    return np.load(next((root / "workspace").rglob("calibration.npy")))


def test_redundancy_is_probed_on_held_out_text(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    """The divergence is that of transformers' own classes on the last sequence."""
    seen: list[LayerUpdate] = []
    report = without_experts(model, text_file, tmp_path, layers=seen.extend)
    windows = torch.from_numpy(calibration_of(tmp_path)[7:]).long()
    with torch.inference_mode():
        whole, left = (
            loaded(each)(input_ids=windows).logits.double().log_softmax(-1)
            for each in (model, tmp_path / "out")
        )
    wanted = float((whole.exp() * (whole - left)).sum(-1).mean())
    assert wanted > 1e-6
    (choice,) = report.rounds
    assert choice.kl == pytest.approx(wanted, rel=1e-3)
    assert choice.widths == [each.experts.after if each.experts else 0 for each in report.layers]
    assert merged(seen)[-1].kl == choice.kl
    assert not any("They were not redundant" in line for line in report.warnings)
    assert "Redundancy of the experts" in (tmp_path / "out/report.html").read_text()


def test_experts_that_were_needed_are_warned_of(
    mixtral: Path, text_file: Path, tmp_path: Path
) -> None:
    model = copied(mixtral, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] *= 60.0  # Every difference in the hidden states shows.
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    report = without_experts(model, text_file, tmp_path)
    kl = report.rounds[0].kl
    assert kl is not None
    assert kl > LARGE_DIVERGENCE
    (warning,) = (line for line in report.warnings if "They were not redundant" in line)
    assert "keep more of them" in warning


def copied(model: Path, directory: Path) -> Path:
    """A copy of a checkpoint, to change it."""
    directory.mkdir()
    for path in model.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


BY_LAYER: dict[str, Any] = {"layout": "per_layer", "sparsity": 0.3}


def test_layers_keep_different_numbers_by_choice(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    """The files load through the Auto classes, and compute what a router makes that avoids those
    experts in the dense model; where experts form groups, groups lose equally many."""
    if routing_of(read(model)).groups == 1:
        limits: dict[str, Any] = {"sparsity": 0.3, "max_sparsity_by_layer": {0: 0.0, 1: 0.25}}
    else:
        limits = {"sparsity": 0.375}  # Three steps of two experts, at most two of a layer.
    pruning = {**BY_LAYER, "energy": "forward", **limits}
    report = without_experts(model, text_file, tmp_path, **pruning)
    experts = of_layers(report)
    counts = {layer: each.after for layer, each in experts.items()}
    assert len(set(counts.values())) > 1
    gone = report.before.experts - report.after.experts
    assert gone == sum(each.before - each.after for each in experts.values())
    assert report.sparsity.experts_removed == gone
    assert report.sparsity.reached == pytest.approx(gone / report.before.experts)
    assert report.rounds[0].widths == [counts.get(each, 0) for each in range(3)]
    assert report.rounds[0].price is not None
    if routing_of(read(model)).groups == 2:
        for each in experts.values():
            first = sum(number < 4 for number in each.removed)
            assert 2 * first == len(each.removed)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == f"strucprune_experts_{read(model).family}"
    by_code = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32
    ).eval()
    ours = load_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    tokens = torch.arange(5, 29).view(2, 12)
    with torch.inference_mode():
        wanted = masked_logits(model, experts, tokens)
        for each in (by_code, ours):
            assert (each(input_ids=tokens).logits - wanted).abs().max() < 1e-5
            assert each.generate(tokens, max_new_tokens=3, do_sample=False).shape == (2, 15)
    assert verify_checkpoint(str(tmp_path / "out"))["valid"]


def masked_logits(
    model: Path, experts: dict[int, ExpertsReport], tokens: torch.Tensor
) -> torch.Tensor:
    """Logits of the dense model when routers avoid the removed experts."""
    dense = loaded(model)
    config = read(model)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for layer, each in experts.items():
            removed, prefix = each.removed, config.names.layer.format(layer)
            has = experts_of(config, layer)
            assert has is not None
            names = ParameterNames(dense)
            for name, _ in has.sliced:
                value = dense.state_dict()[names.parameter_of(prefix + name)[0]]
                if value.numel() == EXPERTS:
                    value.view(-1)[torch.tensor(removed, dtype=torch.int64)] = NEVER_CHOSEN
                elif value.dim() == 2 and "expert" not in name:
                    stack.enter_context(masking([value].copy, removed))
        logits: torch.Tensor = dense(input_ids=tokens).logits
    return logits


def test_what_a_layer_costs_is_probed(mixtral: Path, text_file: Path, tmp_path: Path) -> None:
    report = without_experts(mixtral, text_file, tmp_path, **BY_LAYER)
    energies = [layer.energy for layer in report.layers]
    assert len(set(energies)) == 3
    assert all(energy > 0.0 for energy in energies)
    damages = [layer.predicted_damage for layer in report.layers]
    assert report.rounds[0].predicted_damage == pytest.approx(sum(damages))
    estimate = estimate_job(
        tiny_spec(
            mixtral, text_file, tmp_path / "x", pruning={**BY_LAYER, "structures": ["experts"]}
        ),
        inspect_model(LocalStore(mixtral), experts=True),
    )
    assert estimate.parameters_after == report.after.parameters
    assert estimate.sparsity_reached == pytest.approx(report.sparsity.reached)


@pytest.mark.parametrize("unit", ["probe.0", "select"])
def test_a_resumed_job_by_layer_ends_with_the_same_bytes(
    mixtral: Path, text_file: Path, tmp_path: Path, unit: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    without_experts(mixtral, text_file, whole, **BY_LAYER)
    pruning = {**BY_LAYER, "structures": ["experts"]}
    spec = tiny_spec(mixtral, text_file, parts / "out", pruning=pruning, evaluation=EASY)
    with pytest.raises(Stopped):
        run(spec, parts, stop=StopOnceFinished(parts, unit))
    run(spec, parts)
    assert checkpoint_of(parts / "out") == checkpoint_of(whole / "out")


def test_a_model_with_numbers_by_layer_cannot_be_pruned_again(
    mixtral: Path, text_file: Path, tmp_path: Path
) -> None:
    without_experts(mixtral, text_file, tmp_path / "first", **BY_LAYER)
    for structures in (["experts"], ["ffn_channels"]):
        error = refusal(
            tmp_path / "first/out", text_file, tmp_path / structures[0], structures=structures
        )
        assert error.field == "model.uri"
        assert "have lost different numbers of experts" in error.message


def read(model: Path) -> ModelConfig:
    return inspect_model(LocalStore(model), experts=True).config


@pytest.mark.parametrize(
    "unit", ["model_check", "route.0", "route.2", "select", "divergence", "assemble.0"]
)
def test_a_resumed_job_ends_with_the_same_bytes(
    mixtral: Path, text_file: Path, tmp_path: Path, unit: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    without_experts(mixtral, text_file, whole)
    pruning = {"sparsity": 0.25, "structures": ["experts"]}
    spec = tiny_spec(mixtral, text_file, parts / "out", pruning=pruning, evaluation=EASY)
    with pytest.raises(Stopped):
        run(spec, parts, stop=StopOnceFinished(parts, unit))
    assert files_of(parts / "out") == {}
    run(spec, parts)
    assert checkpoint_of(parts / "out") == checkpoint_of(whole / "out")


def test_experts_that_no_token_reaches_go_first(
    gpt_oss: Path, text_file: Path, tmp_path: Path
) -> None:
    model = copied(gpt_oss, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.router.bias"][[2, 5]] = -1e4
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    report = without_experts(model, text_file, tmp_path)
    experts = of_layers(report)[1]
    assert experts.removed == [2, 5]
    assert experts.calibration_tokens[2] == experts.calibration_tokens[5] == 0
    (warning,) = (line for line in report.warnings if "experts saw fewer" in line)
    assert "2 none at all, which went first" in warning


def test_unequal_groups_would_be_noticed(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loads cleanly and computes something else is refused before any work."""
    model = save_tiny_experts("deepseek_v3", tmp_path / "model")

    def unequal(config: Any, counts: Any, seed: int) -> list[list[int]]:
        stay = [0, 1, 2, 3, 4, 7]
        return [[] if experts_of(config, n) is None else stay for n in range(config.layers)]

    monkeypatch.setattr(experts_check, "_some_experts", unequal)
    with pytest.raises(
        UnsupportedArchitecture,
        match="something else than what it computes where its router avoids",
    ):
        without_experts(model, text_file, tmp_path)


def test_groups_lose_equally_many(text_file: Path, tmp_path: Path) -> None:
    model = save_tiny_experts("deepseek_v3", tmp_path / "model")
    config = read(model)
    assert first_experts(config, [6] * 3)[1] == [0, 1, 2, 4, 5, 6]
    report = without_experts(model, text_file, tmp_path, sparsity=0.4)
    for experts in of_layers(report).values():  # 4.8 would be nearest; 4 is a multiple of two.
        assert sorted(each // 4 for each in experts.removed) == [0, 0, 1, 1]
    assert any("0.4 was asked for" in line for line in report.warnings)


def refusal(model: Path, text: Path, root: Path, **pruning: Any) -> InvalidSpec:
    with pytest.raises(InvalidSpec) as caught:
        without_experts(model, text, root, **pruning)
    assert files_of(root / "out") == {}
    return caught.value


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"sparsity": 0.9}, "pruning.sparsity", "at most 6 of 8 experts"),
        ({"sparsity": 0.05}, "pruning.sparsity", "rounds to none"),
        ({"multiple_of": 8}, "pruning.structures", "no expert can be removed"),
        ({"min_keep_fraction": 0.9}, "pruning.structures", "8 of 8 must stay"),
    ],
)
def test_numbers_that_cannot_be(
    mixtral: Path, text_file: Path, tmp_path: Path, changes: dict[str, Any], field: str, text: str
) -> None:
    error = refusal(mixtral, text_file, tmp_path, **changes)
    assert error.field == field
    assert text in error.message
    assert error.remedy


@pytest.mark.parametrize(
    ("model_type", "count", "changes", "text", "remedy"),
    [
        (
            "mixtral",
            1,
            {},
            "at least 2 experts of a layer must stay: a token chooses 2",
            "Ask for 2.",
        ),
        ("mixtral", 8, {}, "a layer has 8 experts, and 8 of them would stay", "Ask for 7."),
        ("mixtral", 40, {}, "a layer has 8 experts, and 40 of them would stay", "Ask for 7."),
        ("mixtral", 5, {"multiple_of": 2}, "5 is not a multiple of 2", "Ask for 6 or 4."),
        ("mixtral", 3, {"min_keep_fraction": 0.5}, "at least 4 experts", "Ask for 4"),
        (
            "deepseek_v3",
            5,
            {},
            "5 is not a multiple of 2: experts form 2 groups",
            "Ask for 6 or 4.",
        ),
        ("deepseek_v3", 7, {}, "7 is not a multiple of 2", "Ask for 6."),
    ],
)
def test_a_count_that_cannot_be_names_the_nearest_that_can(
    text_file: Path,
    tmp_path: Path,
    model_type: str,
    count: int,
    changes: dict[str, Any],
    text: str,
    remedy: str,
) -> None:
    model = save_tiny_experts(model_type, tmp_path / "model")
    error = refusal(model, text_file, tmp_path, sparsity=None, expert_count=count, **changes)
    assert error.field == "pruning.expert_count"
    assert text in error.message
    assert remedy in (error.remedy or "")


def test_a_count_says_what_a_sparsity_says(mixtral: Path, text_file: Path, tmp_path: Path) -> None:
    """The files are equal; sizes and warnings are those of the sparsity that the count is."""
    share, count = tmp_path / "share", tmp_path / "count"
    without_experts(mixtral, text_file, share, sparsity=0.375)
    asked = {"sparsity": None, "expert_count": 5, "structures": ["experts"]}
    spec = tiny_spec(mixtral, text_file, count / "out", pruning=asked, evaluation=EASY)
    estimate = estimate_job(spec, inspect_model(LocalStore(mixtral), experts=True))
    report = run(spec, count)
    weights = (load_file(each / "out/model.safetensors") for each in (share, count))
    first, second = weights
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert (report.sparsity.requested, report.sparsity.reached) == (0.375, 0.375)
    assert (estimate.sparsity_requested, estimate.sparsity_reached) == (0.375, 0.375)
    assert not any("sparsity" in line for line in [*report.warnings, *estimate.warnings])


def test_models_without_experts_are_refused(text_file: Path, tmp_path: Path) -> None:
    llama = make_tiny_llama(tmp_path / "llama", layers=2)
    error = refusal(llama, text_file, tmp_path)
    assert error.field == "pruning.structures"
    assert "'llama' has no routed experts" in error.message


@pytest.mark.parametrize(
    ("model_type", "changes", "text"),
    [
        (
            "qwen3_moe",
            {"num_local_experts": 4},
            "contradicts itself: num_local_experts: 4 and num_experts: 8",
        ),
        ("gpt_oss", {"num_local_experts": 2}, "a layer has 2 experts .*, but the files hold 8"),
        ("gpt_oss", {"num_local_experts": 9}, "a layer has 9 experts .*, but the files hold 8"),
        ("mixtral", {"num_local_experts": 7}, "a layer has 7 experts .*, but the files hold 8"),
        ("mixtral", {"num_local_experts": 9}, "a layer has 9 experts .*, but the files hold 8"),
        ("deepseek_v3", {"n_group": 3}, "divides 8 experts into 3 groups"),
    ],
)
def test_a_config_that_says_another_number_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], text: str
) -> None:
    model = save_tiny_experts(model_type, tmp_path / "model")
    config = model / "config.json"
    said = {"num_experts": EXPERTS} if model_type == "qwen3_moe" else {}
    config.write_text(json.dumps({**json.loads(config.read_text()), **said, **changes}))
    with pytest.raises(InvalidCheckpoint, match=text):
        read(model)


def test_a_number_that_config_json_lacks_is_called_a_default(
    text_file: Path, tmp_path: Path
) -> None:
    model = save_tiny_experts("qwen3_moe", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config["num_experts_per_tok"]
    (model / "config.json").write_text(json.dumps(config))
    error = refusal(model, text_file, tmp_path)
    assert "the default of its class in transformers: config.json has no num_exp" in error.message


def test_estimates_of_channels_count_a_tokens_own_experts_alone(tmp_path: Path) -> None:
    """deepseek_v3's shared experts have channels; a token passes 2 of its 8 routed ones."""
    model = save_tiny_experts("deepseek_v3", tmp_path / "model")
    channels, experts = (
        inspect_model(LocalStore(model), experts=each).config for each in (False, True)
    )
    assert any(block.ffn_widths for block in channels.blocks)
    for layer in range(channels.layers):
        assert active_weights(channels, layer) == active_weights(experts, layer)
    assert size_of(channels, dtype_bytes=4).experts == 16


def test_an_estimate_knows_the_result(model: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {"sparsity": 0.25, "structures": ["experts"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    estimate = estimate_job(spec, inspect_model(LocalStore(model), experts=True))
    report = run(spec, tmp_path)
    assert estimate.parameters_after == report.after.parameters
    assert estimate.sparsity_reached == report.sparsity.reached
    assert estimate.bytes_after == pytest.approx(report.after.bytes, rel=0.01)
    assert report.after.flops_per_token < report.before.flops_per_token  # fewer rows of a router


def test_a_class_that_computes_experts_its_own_way_is_refused(
    text_file: Path, tmp_path: Path
) -> None:
    jetmoe = save_tiny_experts("jetmoe", tmp_path / "jetmoe")
    error = refusal(jetmoe, text_file, tmp_path)
    assert "in a way of its own" in error.message


def test_a_model_that_was_pruned_before_is_refused(
    mixtral: Path, text_file: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(tiny_spec(mixtral, text_file, first / "out", evaluation=EASY), first)
    error = refusal(first / "out", text_file, tmp_path / "second")
    assert "was pruned before" in error.message


def test_a_model_that_has_experts_alone(text_file: Path, tmp_path: Path) -> None:
    """It can be read and checked for any purpose, and an error says what can be removed."""
    model = save_tiny_experts("granitemoe", tmp_path / "model")
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY)
    with pytest.raises(InvalidSpec, match="only experts") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "pruning.structures"
    assert [each.field for each in examine_job(spec, local).issues] == ["pruning.structures"]
    without_experts(model, text_file, tmp_path / "other")
    assert verify_checkpoint(str(tmp_path / "other/out"))["valid"]


def local(uri: str) -> LocalStore:
    return LocalStore(Path(uri))


def test_channels_of_the_result_can_be_pruned(
    mixtral: Path, text_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    without_experts(mixtral, text_file, first)
    assert json.loads((first / "out/config.json").read_text())["num_local_experts"] == 6
    report = run(tiny_spec(first / "out", text_file, second / "out", evaluation=EASY), second)
    assert report.after.ffn_channels < report.before.ffn_channels


def test_experts_that_stay_are_repaired_where_held_out_text_agrees(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    """Down matrices alone change; held-out errors are those of transformers' own layers."""
    plain, root = tmp_path / "plain", tmp_path / "repaired"
    without_experts(model, text_file, plain)
    seen: list[LayerUpdate] = []
    report = without_experts(model, text_file, root, layers=seen.extend, expert_repair=True)
    left, repaired = loaded(plain / "out").state_dict(), loaded(root / "out").state_dict()
    accepted = set()
    for layer, experts in of_layers(report).items():
        assert experts.repair is not None
        assert experts.repair.error_before is not None
        assert experts.repair.error_after is not None
        better = experts.repair.error_after < experts.repair.error_before
        assert experts.repair.status == ("accepted" if better else "rejected")
        if better:
            accepted.add(layer)
    assert accepted
    changed = {name for name, tensor in left.items() if not torch.equal(tensor, repaired[name])}
    assert {int(name.split(".")[2]) for name in changed} == accepted
    assert {name.rpartition(".")[2] for name in changed} <= {"down_proj"}
    errors = {each.index: each.reconstruction_error for each in merged(seen)}
    first = min(accepted)
    assert errors[first] == of_layers(report)[first].repair.error_after  # type: ignore[union-attr]
    assert "accepted" in (root / "out/report.html").read_text()
    tokens = torch.from_numpy(calibration_of(root)[7:]).long()
    outputs = []
    for each in (model, root / "out"):
        found: list[torch.Tensor] = []
        whole = loaded(each)
        whole.model.layers[first].register_forward_hook(
            lambda _, __, out, found=found: found.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.inference_mode():
            whole(input_ids=tokens)
        outputs.append(found[0].double())
    dense, other = outputs
    error = float((dense - other).square().sum() / dense.square().sum())
    assert error == pytest.approx(errors[first], rel=1e-3)


@pytest.mark.parametrize("pruning", [{"expert_repair": True}, BY_LAYER])
def test_the_memory_plan_holds(
    mixtral: Path, text_file: Path, tmp_path: Path, pruning: dict[str, Any]
) -> None:
    """A job that is allowed what its plan says does not take more: it would fail."""
    asked = {"sparsity": 0.25, "structures": ["experts"], **pruning}
    spec = tiny_spec(mixtral, text_file, tmp_path / "out", pruning=asked, evaluation=EASY)
    planned = estimate_job(spec, inspect_model(LocalStore(mixtral), experts=True)).step_bytes
    assert ("repair" in planned) == ("expert_repair" in pruning)
    assert ("probe" in planned) == (pruning is BY_LAYER)
    limit = {"device_memory_bytes": math.ceil(1.06 * max(planned.values()))}
    run(spec.model_copy(update={"runtime": RuntimeSpec(device="cpu", **limit)}), tmp_path)


WIDE = {
    "qwen3_moe": {"moe_intermediate_size": 1024},
    "gpt_oss": {"intermediate_size": 1024},
    "deepseek_v3": {"moe_intermediate_size": 1024},
}


@pytest.mark.parametrize("pruning", [{}, BY_LAYER], ids=["equal", "by_layer"])
@pytest.mark.parametrize("name", WIDE)
def test_with_less_memory_one_expert_is_resident(
    text_file: Path, tmp_path: Path, name: str, pruning: dict[str, Any]
) -> None:
    """The same experts go, and the job keeps to what its plan says."""
    model = save_tiny_experts(name, tmp_path / "model", **WIDE[name])
    asked = {"sparsity": 0.25, "structures": ["experts"], **pruning}
    facts = inspect_model(LocalStore(model), experts=True)

    def spec(output: str, limit: int | None) -> JobSpec:
        plain = tiny_spec(model, text_file, tmp_path / output, pruning=asked, evaluation=EASY)
        runtime = RuntimeSpec(device="cpu", device_memory_bytes=limit)
        return plain.model_copy(update={"runtime": runtime})

    ample = spec("ample", None)
    whole = estimate_job(ample, facts)
    # With a little less memory, some models get by with fewer tokens at a time.
    limits = [max(whole.step_bytes.values()) * eighths // 8 for eighths in (6, 5, 4)]
    limit, limited, estimate = next(
        (limit, limited, estimate)
        for limit in limits
        for limited in [spec("limited", limit)]
        for estimate in [estimate_job(limited, facts)]
        if estimate.pieces["experts"] == 1
    )
    assert whole.pieces["experts"] is None
    assert estimate.bytes_read >= whole.bytes_read
    plain, found = (run(each, tmp_path / f"run-{n}") for n, each in enumerate((ample, limited)))
    measured = found.memory.device_peak_bytes.measured
    assert measured is not None
    assert measured <= max(estimate.step_bytes.values()) <= limit
    kept_by = [{n: each.removed for n, each in of_layers(r).items()} for r in (plain, found)]
    assert kept_by[0] == kept_by[1]
    pairs = [load_file(tmp_path / each / "model.safetensors") for each in ("ample", "limited")]
    assert pairs[0].keys() == pairs[1].keys()
    assert all(torch.equal(tensor, pairs[1][each]) for each, tensor in pairs[0].items())


def test_channels_beside_experts_are_removed_with_one_expert_resident(
    text_file: Path, tmp_path: Path
) -> None:
    """Statistics, probes, evaluation and the checks of a job that removes channels."""
    wide = {"moe_intermediate_size": 2048, "shared_expert_intermediate_size": 96}
    model = save_tiny_experts("qwen2_moe", tmp_path / "model", **wide)
    facts = inspect_model(LocalStore(model))
    found = {}
    for name in ("ample", "limited"):
        spec = tiny_spec(model, text_file, tmp_path / name, pruning={}, evaluation=EASY)
        estimate = estimate_job(spec, facts)
        if name == "limited":
            limit = max(estimate.step_bytes.values()) // 2
            runtime = RuntimeSpec(device="cpu", device_memory_bytes=limit)
            spec = spec.model_copy(update={"runtime": runtime})
            estimate = estimate_job(spec, facts)
        assert estimate.pieces["experts"] == (1 if name == "limited" else None)
        report = run(spec, tmp_path / f"run-{name}")
        measured = report.memory.device_peak_bytes.measured
        assert (measured or 0) <= max(estimate.step_bytes.values())
        found[name] = load_file(tmp_path / name / "model.safetensors")
    assert measured is not None
    assert found["ample"].keys() == found["limited"].keys()
    for key, tensor in found["ample"].items():
        torch.testing.assert_close(found["limited"][key], tensor, rtol=1e-3, atol=1e-4)
