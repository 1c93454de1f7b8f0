"""Energies from gradients, and price rounds, in whole jobs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from strucprune_core.errors import Stopped
from strucprune_core.export.loading import load_pretrained
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import Site
from strucprune_core.plan import graph as units
from strucprune_core.plan.sites import plan_sites, pruned_config
from strucprune_core.run.solutions import load_solution
from strucprune_core.run.workspace import Workspace
from tests.core.jobs.tiny_job import EASY, StopAt, checkpoint_of, run, tiny_spec
from tests.core.models.families import VARIANTS, saved_variant
from tests.core.models.reference import (
    open_stream,
    reference_gradients,
    reference_logits,
    streamed_logits,
)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups even in a model of three layers."""
    monkeypatch.setattr(units, "PROBE_GROUP_LAYERS", 2)


def probe_windows(root: Path) -> Any:
    """The held-out sequence of the tiny job: its last one."""
    (file,) = (root / "workspace/units/tokens").glob("*/calibration.npy")
    return np.load(file)[-1:]


def values(root: Path, unit: str) -> Any:
    manifest = json.loads((root / f"workspace/units/{unit}/manifest.json").read_bytes())
    return manifest["values"]


def divergence(dense: Tensor, other: Tensor) -> float:
    """Mean KL(dense || other) per token, from logits (b, n, V)."""
    p, q = (x.double().log_softmax(-1).flatten(0, 1) for x in (dense, other))
    return float(functional.kl_div(q, p, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_energies_are_those_of_the_whole_model(
    text_file: Path, tmp_path: Path, variant: str
) -> None:
    model = saved_variant(variant, tmp_path / "model")
    structures = ["ffn_channels", "kv_groups"]
    spec = tiny_spec(
        model,
        text_file,
        tmp_path / "out",
        pruning={"energy": "gradient", "structures": structures},
        evaluation=EASY,
    )
    report = run(spec, tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(
        model, attn_implementation="eager" if variant.startswith("gemma") else "sdpa"
    ).eval()
    expected = reference_gradients(whole, probe_windows(tmp_path))
    for layer in report.layers:
        for site in layer.sites:
            kind = "attention" if site.name == "attention" else "ffn"
            gradient = expected[layer.index, kind][0, :-1]
            alpha = float(gradient.square().sum(-1).mean()) / (2 * gradient.shape[-1])
            assert site.energy == pytest.approx(alpha, rel=1e-4)


def test_the_round_of_least_divergence_is_used(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning={"rounds": 3})
    report = run(spec, tmp_path)
    first, *others = report.rounds
    assert len(others) == 2
    kls = [each.kl for each in report.rounds if each.kl is not None]
    assert len(kls) == 3
    (used,) = (each for each in report.rounds if each.used)
    assert used.kl == min(kls)
    assert [layer.width_after for layer in report.layers] == used.widths
    assert any(each.widths != first.widths for each in others)
    assert report.sparsity.reached >= 0.3
    # What was tried is what is published.
    dense, pruned = (
        reference_logits(loaded, probe_windows(tmp_path))
        for loaded in (
            AutoModelForCausalLM.from_pretrained(tiny_model),
            load_pretrained(str(tmp_path / "out")),
        )
    )
    assert used.kl == pytest.approx(divergence(dense, pruned), rel=1e-4)


def test_one_round_is_what_it_was(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    report = run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    (only,) = report.rounds
    assert only.used
    assert only.kl is None
    assert only.widths == [layer.width_after for layer in report.layers]
    assert only.predicted_damage == pytest.approx(
        sum(layer.predicted_damage for layer in report.layers)
    )
    assert not list((tmp_path / "workspace/units").glob("trial*"))


@pytest.mark.parametrize("variant", ["llama", "mixtral"])
def test_a_review_puts_one_kind_of_site_back(
    text_file: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workspace, "release", lambda *args: None)  # the solutions are wanted here
    model = saved_variant(variant, tmp_path / "model")
    structures = ["ffn_channels", "kv_groups"]
    pruning = {"structures": structures, "rounds": 2, "sparsity": 0.4}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY)
    run(spec, tmp_path)
    dense, tokens = open_stream(model), probe_windows(tmp_path)
    logits = streamed_logits(dense, tokens, tmp_path)
    planned = plan_sites(dense.config, spec.pruning)
    kept = values(tmp_path, "price.1")["widths"]

    def solution(layer: int, site: Site) -> SiteSolution:
        (file,) = (tmp_path / f"workspace/units/trial.1.{layer}").glob("*/solution.safetensors")
        return load_solution(file, site)

    reviewed = [row for group in (0, 1) for row in values(tmp_path, f"review.1.{group}")["kl"]]
    assert len(reviewed) == len({(place.layer, place.site.kind) for place in planned})
    for layer, kind, found in reviewed:
        back = [(place.layer, place.site.kind) == (layer, kind) for place in planned]
        widths = [
            place.site.structures if dense_again else width
            for place, width, dense_again in zip(planned, kept, back, strict=True)
        ]
        gone = [
            (place.layer, place.site)
            for place, dense_again in zip(planned, back, strict=True)
            if not dense_again
        ]
        variant_stream = ModelStream(
            pruned_config(dense.config, spec.pruning, planned, widths),
            PrunedSource(dense.source, dense.config, gone, solution),
            dense.device,
        )
        expected = divergence(logits, streamed_logits(variant_stream, tokens, tmp_path))
        assert found == pytest.approx(expected, rel=1e-4)


def test_rounds_and_gradients_resume_with_the_same_bytes(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    pruning = {"energy": "gradient", "rounds": 2}
    whole = tiny_spec(tiny_model, text_file, tmp_path / "whole/out", pruning=pruning)
    run(whole, tmp_path / "whole")
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", pruning=pruning)
    stops = 0
    for checks in (30, 12, 5, 7, 4, 6, 9, 11, 10_000):
        with contextlib.suppress(Stopped):
            run(spec, tmp_path, stop=StopAt(checks))
            break
        stops += 1
    assert stops > 5
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(tmp_path / "whole/out")
    for unit in ("gradient.0", "price.2", "allocate"):
        assert values(tmp_path, unit) == values(tmp_path / "whole", unit)
