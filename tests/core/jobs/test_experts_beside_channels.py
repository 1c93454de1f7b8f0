"""Whole jobs that remove experts and FFN channels in one budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidSpec, Stopped
from strucprune_core.evaluation.standalone import verify_checkpoint
from strucprune_core.export.loading import load_pretrained
from strucprune_core.method.allocation.budget import REACH_TOLERANCE
from strucprune_core.models.experts import expert_parameters
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.document import Report
from strucprune_core.run.layer_updates import LayerSink, LayerUpdate, ignore_layers, merged
from strucprune_core.spec import JobSpec, RuntimeSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, StopOnceFinished, checkpoint_of, files_of, run, tiny_spec
from tests.support.tiny_experts import EXPERTS, save_tiny_experts

# Groups of experts, a plain first layer and shared experts; shared experts alone.
ARCHITECTURES = ["deepseek_v3", "qwen2_moe"]
BOTH = ["experts", "ffn_channels"]
TOKENS = torch.arange(5, 29).view(2, 12)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_experts(request.param, tmp_path_factory.mktemp(request.param) / "model")


def job(model: Path, text: Path, output: Path, **pruning: Any) -> JobSpec:
    asked = {"sparsity": 0.3, "structures": BOTH, **pruning}
    return tiny_spec(model, text, output, pruning=asked, evaluation=EASY)


def pruned(
    model: Path, text: Path, root: Path, layers: LayerSink = ignore_layers, **pruning: Any
) -> Report:
    return run(job(model, text, root / "out", **pruning), root, layers=layers)


def kept_by_layer(report: Report) -> dict[int, int]:
    return {each.index: each.experts.after for each in report.layers if each.experts is not None}


def probed(root: Path) -> list[tuple[int, float]]:
    """What the job has measured of numbers of experts: (steps, loss)."""
    manifests = [json.loads(path.read_text()) for path in (root / "workspace").rglob("*.json")]
    (values,) = (m["values"] for m in manifests if "losses" in m.get("values", {}))
    return [(steps, loss) for steps, loss in values["losses"]]


def test_both_meet_one_budget_and_the_result_loads(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    seen: list[LayerUpdate] = []
    report = pruned(model, text_file, tmp_path, layers=seen.extend)
    config = inspect_model(LocalStore(model), experts=True).config
    shares = kept_by_layer(report)
    assert len(shares) > 1
    assert len(set(shares.values())) == 1
    gone = report.before.parameters - report.after.parameters
    total = sum(expert_parameters(config, n) * EXPERTS for n in shares)
    total += sum(
        place.structures_before * 3 * config.hidden_size
        for layer in report.layers
        for place in layer.sites
    )
    assert report.sparsity.reached == pytest.approx(gone / total)
    assert 0.3 - 1e-9 <= report.sparsity.reached <= 0.3 * (1 + REACH_TOLERANCE)
    assert report.sparsity.parameters_removed == gone
    (choice,) = report.rounds
    assert choice.kl is not None
    last = merged(seen)[-1]
    assert (last.kl, last.experts_after) == (choice.kl, shares[report.layers[-1].index])
    by_code = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32
    ).eval()
    ours = load_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    with torch.inference_mode():
        one, other = (each(input_ids=TOKENS).logits for each in (by_code, ours))
    assert torch.equal(one, other)
    assert verify_checkpoint(str(tmp_path / "out"))["valid"]
    page = (tmp_path / "out/report.html").read_text()
    assert "Kept experts" in page
    assert "channels kept" in page
    before, after = report.before, report.after
    assert f"{before.ffn_channels - after.ffn_channels:,} of {before.ffn_channels:,} FFN" in page
    assert f"{before.experts - after.experts} of {before.experts} routed experts" in page
    assert "of the prunable parameters" in page


def changed(model: Path, directory: Path, change: Callable[[str, torch.Tensor], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    directory.mkdir()
    for path in model.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        change(name, tensor)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_what_costs_nothing_goes_first(text_file: Path, tmp_path: Path) -> None:
    """Channels that do nothing: experts stay. Experts that do nothing: channels stay."""
    dense = save_tiny_experts("qwen2_moe", tmp_path / "dense", shared_expert_intermediate_size=256)

    def no_channels(name: str, tensor: torch.Tensor) -> None:
        if "shared_expert.down_proj" in name:
            tensor[:, 64:] = 0.0

    def no_experts(name: str, tensor: torch.Tensor) -> None:
        if ".experts." in name and "down_proj" in name:
            tensor.zero_()

    idle = changed(dense, tmp_path / "idle-channels", no_channels)
    report = pruned(idle, text_file, tmp_path / "a", sparsity=0.2)
    assert set(kept_by_layer(report).values()) == {EXPERTS}
    assert report.after.ffn_channels < report.before.ffn_channels
    idle = changed(dense, tmp_path / "idle-experts", no_experts)
    report = pruned(idle, text_file, tmp_path / "b", sparsity=0.2)
    (kept,) = set(kept_by_layer(report).values())
    assert kept < EXPERTS
    # As many experts as the budget holds; what is less than one step goes of the channels.
    assert report.after.ffn_channels > 0.85 * report.before.ffn_channels


def test_numbers_of_experts_are_measured_and_one_is_chosen(text_file: Path, tmp_path: Path) -> None:
    """What is measured is the divergence that a job on so many experts alone finds at its end."""
    model = save_tiny_experts("qwen2_moe", tmp_path / "model", shared_expert_intermediate_size=256)
    report = pruned(model, text_file, tmp_path)
    losses = dict(probed(tmp_path))
    assert len(losses) >= 3
    assert [*losses] == sorted(losses)
    for steps, loss in losses.items():
        asked = {"structures": ["experts"], "sparsity": None, "expert_count": EXPERTS - steps}
        root = tmp_path / str(steps)
        alone = run(tiny_spec(model, text_file, root / "out", pruning=asked), root)
        assert loss == pytest.approx(alone.rounds[0].kl, rel=1e-3)
    (kept,) = set(kept_by_layer(report).values())
    assert EXPERTS - kept in {0, *losses}
    channels = [site.predicted_damage for layer in report.layers for site in layer.sites]
    assert report.rounds[0].predicted_damage == pytest.approx(
        losses.get(EXPERTS - kept, 0.0) + sum(channels)
    )


@pytest.mark.parametrize("unit", ["capture.1", "expert_probe", "allocate", "divergence"])
def test_a_resumed_job_ends_with_the_same_bytes(text_file: Path, tmp_path: Path, unit: str) -> None:
    model = save_tiny_experts("qwen2_moe", tmp_path / "model")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pruned(model, text_file, whole)
    spec = job(model, text_file, parts / "out")
    with pytest.raises(Stopped):
        run(spec, parts, stop=StopOnceFinished(parts, unit))
    assert files_of(parts / "out") == {}
    run(spec, parts)
    assert checkpoint_of(parts / "out") == checkpoint_of(whole / "out")


def test_an_estimate_and_the_memory_plan_hold(model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = job(model, text_file, tmp_path / "out")
    estimate = estimate_job(spec, inspect_model(LocalStore(model), experts=True))
    limit = math.ceil(1.06 * max(estimate.step_bytes.values()))
    runtime = RuntimeSpec(device="cpu", device_memory_bytes=limit)
    report = run(spec.model_copy(update={"runtime": runtime}), tmp_path)
    assert {"capture", "expert_probe", "divergence"} <= estimate.step_bytes.keys()
    assert estimate.sparsity_reached == pytest.approx(report.sparsity.reached, rel=0.05)
    assert estimate.parameters_after == pytest.approx(report.after.parameters, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"sparsity": 0.95}, "pruning.sparsity", "out of reach"),
        ({"sparsity": 1e-6}, "pruning.sparsity", "less than one structure"),
    ],
)
def test_what_cannot_be_is_refused(
    model: Path, text_file: Path, tmp_path: Path, changes: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        pruned(model, text_file, tmp_path, **changes)
    assert caught.value.field == field
    assert text in caught.value.message


def test_a_model_with_channels_in_its_experts_alone_is_refused(
    text_file: Path, tmp_path: Path
) -> None:
    for name in ("mixtral", "granitemoe"):
        model = save_tiny_experts(name, tmp_path / name)
        with pytest.raises(InvalidSpec, match="has no FFN beside its experts") as caught:
            pruned(model, text_file, tmp_path / f"run-{name}")
        assert caught.value.field == "pruning.structures"
