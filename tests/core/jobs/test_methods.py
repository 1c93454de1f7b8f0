"""Whole jobs with the other methods: ADMM, softmax allocation, recovery."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.errors import Stopped
from strucprune_core.run.artifacts import Capture
from strucprune_core.run.steps import capture
from tests.core.jobs.tiny_job import EASY, StopAt, checkpoint_of, run, tiny_spec
from tests.core.models.families import saved_variant
from tests.support.known import known


def test_admm_says_how_it_went(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"solver": "admm"})
    report = run(spec, tmp_path)
    plain = run(tiny_spec(tiny_model, text_file, tmp_path / "obs" / "out"), tmp_path / "obs")
    for layer, other in zip(report.layers, plain.layers, strict=True):
        (site,), (obs,) = layer.sites, other.sites
        admm = site.admm
        assert admm is not None
        assert admm.status in ("converged", "settled", "iteration_limit", "diverged")
        assert admm.iterations > 0
        assert admm.factorisations == 2
        assert admm.objective_after <= admm.objective_before
        assert (admm.exchanged == 0) == (admm.objective_after == admm.objective_before)
        # The safeguard: never worse on held-out tokens.
        error, plain_error = known(site.reconstruction_error), known(obs.reconstruction_error)
        assert error <= plain_error * (1 + 1e-6)
        assert admm.taken == (error < plain_error)
        best = min(known(admm.held_out_error_before), known(admm.held_out_error_after))
        assert site.reconstruction_error == pytest.approx(best, rel=1e-5)
        assert obs.admm is None


def test_admm_keeps_query_heads_in_lockstep(text_file: Path, tmp_path: Path) -> None:
    model = saved_variant("llama", tmp_path / "model")
    pruning = {"sparsity": 0.5, "solver": "admm", "structures": ["query_heads"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    for layer in report.layers:
        assert layer.query_heads_after % layer.kv_heads_after == 0
        assert layer.sites[0].admm is not None


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_softmax_meets_the_budget(
    tiny_model: Path, text_file: Path, tmp_path: Path, temperature: float | None
) -> None:
    pruning = {"allocation": "softmax", "temperature": temperature}
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    report = run(spec, tmp_path)
    assert 0.3 <= report.sparsity.reached < 0.31
    assert len({layer.width_after for layer in report.layers}) > 1


def test_layers_can_be_left_alone(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    pruning = {
        "allocation": "softmax",
        "max_layer_sparsity": 0.6,
        "max_sparsity_by_layer": {"0": 0.0, "3": 0.1},
    }
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    widths = [layer.width_after for layer in run(spec, tmp_path).layers]
    assert widths[0] == 192
    assert widths[3] >= 172
    assert min(widths) >= 76


def test_forward_energies_need_no_probe(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"energy": "forward"})
    report = run(spec, tmp_path)
    assert {layer.energy for layer in report.layers} == {1.0}
    assert not list((tmp_path / "workspace/units").glob("probe*"))


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", ["llama", "gemma2", "opt-350m", "gpt2", "gpt_neox", "mixtral"])
def test_recovery_lowers_held_out_errors(
    text_file: Path, tmp_path: Path, mode: str, variant: str
) -> None:
    model = saved_variant(variant, tmp_path / "model")
    pruning: dict[str, Any] = {"sparsity": 0.4, "recover": {"steps": 20, "mode": mode}}
    if variant == "llama":
        pruning["structures"] = ["ffn_channels", "kv_groups"]
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    report = run(spec, tmp_path)
    accepted = 0
    for layer in report.layers:
        assert layer.recovery is not None
        assert layer.recovery.error_after is not None
        accepted += layer.recovery.status == "accepted"
        if layer.recovery.status == "accepted":
            assert layer.recovery.error_after < known(layer.recovery.error_before)
    assert accepted or (variant, mode) == ("mixtral", "sequential")  # too few tokens an expert
    assert report.verification.max_abs_logit_difference <= report.verification.tolerance


def test_recovery_resumes_with_the_same_bytes(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {"recover": {"steps": 3, "mode": "sequential"}}
    whole = tiny_spec(tiny_model, text_file, tmp_path / "whole" / "out", pruning=pruning)
    run(whole, tmp_path / "whole")
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    stops = 0
    for checks in (30, 25, 12, 9, 11, 14, 10_000):
        with contextlib.suppress(Stopped):
            run(spec, tmp_path, stop=StopAt(checks))
            break
        stops += 1
    assert stops > 3
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(tmp_path / "whole" / "out")


def test_held_out_tokens_are_bounded(
    tiny_model: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "HOLDOUT_TOKENS", 10)
    shapes: list[tuple[int, ...]] = []

    def watched(path: Path, tensors: Mapping[str, Tensor]) -> None:
        if path.name == Capture.holdout:
            shapes.extend(tuple(tensor.shape) for tensor in tensors.values())
        save_bundle(path, tensors)

    monkeypatch.setattr(capture, "save_bundle", watched)
    calibration = {"samples": 40, "sequence_length": 32}
    run(tiny_spec(tiny_model, text_file, tmp_path / "out", calibration=calibration), tmp_path)
    assert shapes == [(10, 192)] * 4
