"""Training of the whole pruned model, streamed, against the same with the model in memory."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import Stopped
from strucprune_core.export.loading import load_pretrained
from strucprune_core.method.training.distillation import BETAS, EPSILON
from strucprune_core.models.output_gradients import kl_gradients
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import kl_divergences, next_token_logits
from strucprune_core.run.steps import distill as distill_step
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, StopAt, checkpoint_of, run, tiny_spec
from tests.core.models.families import VARIANTS, random_model, saved_variant
from tests.core.models.reference import stream_of

# Enough text that a model trained on it is better on the rest of it, too.
TEXT = {"samples": 64, "sequence_length": 32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_divergence_are_autograds(tmp_path: Path, variant: str) -> None:
    tiles = Tiles(vocabulary_rows=100, head_tokens=3)
    stream = replace(stream_of(random_model(variant), tmp_path / "model"), tiles=tiles)
    draw = np.random.default_rng(0)
    shape = (8, stream.config.hidden_size)
    dense = draw.standard_normal(shape, dtype=np.float32)
    other = dense + 0.3 * draw.standard_normal(shape, dtype=np.float32)
    losses, gradient = kl_gradients(stream, dense, other)
    (mean,) = kl_divergences(stream, dense, [other])
    assert losses.mean() == pytest.approx(mean, rel=1e-5)
    # The gradient by central differences of the divergence itself, along random directions.
    for _ in range(3):
        way = draw.standard_normal(shape, dtype=np.float32)
        way /= np.linalg.norm(way)
        ends = (kl_of(stream, dense, other + sign * 1e-2 * way) for sign in (1, -1))
        slope = (next(ends) - next(ends)) / 2e-2
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-3)


def kl_of(stream: Any, dense: np.ndarray, other: np.ndarray) -> float:
    p, q = (next_token_logits(stream, x).double().log_softmax(-1) for x in (dense, other))
    return float((p.exp() * (p - q)).sum())


def plain(model: Path, output: Path) -> Any:
    loaded = load_pretrained(str(output), dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), loaded


def test_a_step_is_that_of_the_model_in_memory(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    """Two steps from the same start, ours streamed, the other with torch's autograd and Adam."""
    pruning: dict[str, Any] = {"structures": ["ffn_channels", "kv_groups"], "sparsity": 0.3}
    start = tiny_spec(
        tiny_model, text_file, tmp_path / "a" / "out", pruning=pruning, calibration=TEXT
    )
    run(start, tmp_path / "a")
    pruning["distill"] = {"steps": 2, "batch_sequences": 60, "learning_rate": 2e-3}
    spec = tiny_spec(
        tiny_model, text_file, tmp_path / "b" / "out", pruning=pruning, calibration=TEXT
    )
    report = run(spec, tmp_path / "b")
    assert report.distillation is not None
    assert report.distillation.status == "accepted"

    dense, model = plain(tiny_model, tmp_path / "a" / "out")
    windows = np.load(next((tmp_path / "b/workspace/units/tokens").rglob("calibration.npy")))
    tokens = torch.from_numpy(windows[:60].astype(np.int64))
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "layers" in name
    ]
    adam = torch.optim.Adam([{"params": [matrix]} for matrix in matrices], betas=BETAS, eps=EPSILON)
    losses = []
    for factor in (1.0, 0.05):  # Warm-up is one step; the last one is at the floor.
        target = dense(tokens).logits.log_softmax(-1).detach()
        found = model(tokens).logits.log_softmax(-1)
        loss = functional.kl_div(found, target, log_target=True, reduction="sum") / tokens.numel()
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group, matrix in zip(adam.param_groups, matrices, strict=True):
            group["lr"] = factor * 2e-3 * float(matrix.detach().square().mean().sqrt())
        adam.step()
    assert report.distillation.losses == pytest.approx(losses, rel=1e-3)
    _, trained = plain(tiny_model, tmp_path / "b" / "out")
    before = dict(plain(tiny_model, tmp_path / "a" / "out")[1].named_parameters())
    expected = dict(model.named_parameters())
    for name, parameter in trained.named_parameters():
        moved = (expected[name] - before[name]).norm()
        assert (
            float((parameter - expected[name]).detach().norm())
            <= 0.02 * float(moved.detach()) + 1e-6
        ), name


@pytest.mark.parametrize("variant", ["llama", "gemma2", "opt-350m", "gpt2", "gpt_neox", "mixtral"])
def test_it_learns(text_file: Path, tmp_path: Path, variant: str) -> None:
    model = saved_variant(variant, tmp_path / "model")
    # One batch is all the text, so that losses of steps can be compared.
    pruning: dict[str, Any] = {
        "sparsity": 0.4,
        "recover": {"steps": 5},
        "distill": {"steps": 15, "batch_sequences": 60, "learning_rate": 1e-3},
    }
    spec = tiny_spec(
        model, text_file, tmp_path / "out", pruning=pruning, calibration=TEXT, evaluation=EASY
    )
    report = run(spec, tmp_path)
    found = report.distillation
    assert found is not None
    assert found.kl_after is not None
    assert len(found.losses) == 15
    assert found.losses[-1] < found.losses[0]
    assert (found.status == "accepted") is (found.kl_after < found.kl_before)
    # Random models generalise where routing does not jump and there is something to learn.
    assert found.status == "accepted" or variant in ("opt-350m", "mixtral")
    assert report.verification.max_abs_logit_difference <= report.verification.tolerance


@pytest.mark.parametrize("status", ["diverged", "rejected"])
def test_what_made_it_worse_is_not_shipped(
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    plain_spec = tiny_spec(tiny_model, text_file, tmp_path / "a" / "out")
    run(plain_spec, tmp_path / "a")

    # Away from the dense model instead of towards it.
    def backwards(*arguments: Any) -> Any:
        losses, gradient = kl_gradients(*arguments)
        return losses, -gradient

    monkeypatch.setattr(distill_step, "kl_gradients", backwards)
    rate = 0.1 if status == "diverged" else 1e-5
    pruning = {"distill": {"steps": 12, "learning_rate": rate}}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "b" / "out", pruning=pruning)
    found = run(spec, tmp_path / "b").distillation
    assert found is not None
    assert found.status == status
    assert (found.kl_after is None) is (status == "diverged")
    ours, theirs = (checkpoint_of(tmp_path / name / "out") for name in "ab")
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_a_loss_that_is_no_number_is_divergence(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        losses, gradient = kl_gradients(*arguments)
        return losses * np.nan, gradient

    monkeypatch.setattr(distill_step, "kl_gradients", broken)
    pruning = {"distill": {"steps": 12}}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    found = run(spec, tmp_path).distillation
    assert found is not None
    assert (found.status, found.losses, found.kl_after) == ("diverged", [], None)


def test_it_resumes_with_the_same_bytes(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {"distill": {"steps": 23, "batch_sequences": 2}}
    whole = tiny_spec(tiny_model, text_file, tmp_path / "whole" / "out", pruning=pruning)
    run(whole, tmp_path / "whole")
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    stops = 0
    for checks in (60, 70, 90, 130, 60, 100_000):
        with contextlib.suppress(Stopped):
            run(spec, tmp_path, stop=StopAt(checks))
            break
        stops += 1
    assert stops > 3
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(tmp_path / "whole" / "out")
    index = open_checkpoint(LocalStore(tmp_path / "out"))
    assert TensorReader(index).tensor("model.layers.0.self_attn.q_proj.weight").isfinite().all()
