"""Sites that few calibration tokens reach, or none: experts above all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from strucprune_core.report.document import Report, has_few_tokens
from tests.core.jobs.tiny_job import EASY, files_of, run, tiny_spec
from tests.core.models.families import SHAPE, saved
from tests.support.known import known


def experts_model(directory: Path, experts: int, chosen: int, width: int = 16) -> Path:
    """A tiny Qwen3-MoE."""
    return saved(
        hf.Qwen3MoeConfig(
            **{**SHAPE, "num_hidden_layers": 2},
            num_experts=experts,
            num_experts_per_tok=chosen,
            moe_intermediate_size=width,
            norm_topk_prob=True,
        ),
        directory,
    )


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experts_model(tmp_path_factory.mktemp("many"), experts=32, chosen=2)


def pruned(model: Path, text: Path, root: Path, **changes: Any) -> Report:
    spec = tiny_spec(model, text, root / "out", evaluation=EASY, **changes)
    return run(spec, root)


@pytest.fixture(scope="module")
def report(many_experts: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return pruned(many_experts, text_file, tmp_path_factory.mktemp("job"))


def test_errors_over_nothing_are_unknown(report: Report) -> None:
    errors = [site.reconstruction_error for layer in report.layers for site in layer.sites]
    assert None in errors
    known = [error for error in errors if error is not None]
    assert known
    assert all(0.0 <= error < 2.0 for error in known)
    for layer in report.layers:
        of_sites = [site.reconstruction_error for site in layer.sites]
        assert layer.reconstruction_error == max(e for e in of_sites if e is not None)


def test_an_expert_without_tokens_is_not_taken_for_worthless(report: Report) -> None:
    sites = [site for layer in report.layers for site in layer.sites]
    unreached = [site for site in sites if site.calibration_tokens == 0]
    reached = [site for site in sites if not has_few_tokens(site)]
    assert unreached
    assert reached
    kept = sum(site.structures_after for site in unreached) / len(unreached)
    # Its weights alone speak for it, at the use of an average expert: it is neither emptied...
    assert kept > 0.5 * sum(site.structures_after for site in reached) / len(reached)
    # ... nor are its columns ranked by a matrix of zeros.
    assert all(site.predicted_damage > 0.0 for site in unreached if site.structures_after < 16)
    assert all(site.measured_share == 0.0 for site in unreached)
    assert all(site.measured_share == 1.0 for site in reached)
    assert all(site.damping == pytest.approx(3.0) for site in unreached)


def test_they_are_listed_in_one_warning(report: Report) -> None:
    sites = [site for layer in report.layers for site in layer.sites]
    few = [site for site in sites if has_few_tokens(site)]
    none = [site for site in few if site.calibration_tokens == 0]
    (warning,) = [line for line in report.warnings if "fewer calibration tokens" in line]
    assert f"{len(few)} of 64 sites" in warning
    assert f"{len(none)} none at all" in warning
    assert "calibration.samples" in warning


def test_the_report_page_shows_them(many_experts: Path, text_file: Path, tmp_path: Path) -> None:
    found = pruned(many_experts, text_file, tmp_path, pruning={"solver": "admm"})
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "saw fewer calibration tokens than they have columns" in page
    assert "unknown" in page
    judged = [site.admm for layer in found.layers for site in layer.sites if site.admm]
    unknown = [each for each in judged if each.held_out_error_before is None]
    assert unknown
    assert not any(each.taken for each in unknown)  # Nothing speaks for ADMM's choice.
    assert json.loads((tmp_path / "out/report.json").read_text())["layers"]


@pytest.mark.parametrize(
    "pruning",
    [
        {"allocation": "softmax"},
        {"allocation": "uniform"},
        {"rounds": 2},
        {"energy": "gradient"},
        {"energy": "forward", "recover": {"steps": 2}},
        {"structures": ["ffn_channels", "kv_groups"], "distill": {"steps": 1}},
    ],
    ids=str,
)
def test_a_short_calibration_of_experts(
    text_file: Path, tmp_path: Path, pruning: dict[str, Any]
) -> None:
    model = experts_model(tmp_path / "model", experts=8, chosen=2)
    short = {"samples": 2, "sequence_length": 8}
    found = pruned(model, text_file, tmp_path, pruning=pruning, calibration=short)
    assert found.verification.max_abs_logit_difference <= found.verification.tolerance
    assert any("fewer calibration tokens" in line for line in found.warnings)


def test_a_dense_layer_with_a_short_calibration(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    short = {"samples": 2, "sequence_length": 8}
    found = pruned(tiny_model, text_file, tmp_path, calibration=short)
    (warning,) = [line for line in found.warnings if "fewer calibration tokens" in line]
    assert "4 of 4 sites" in warning
    for layer in found.layers:
        (site,) = layer.sites
        assert (site.calibration_tokens, site.columns) == (8, 192)
        assert site.measured_share == pytest.approx(1 / (2 - 8 / 192))
        assert 1.0 < known(site.effective_rank) <= 8.001


def test_enough_tokens_are_left_as_they_are(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    found = pruned(tiny_model, text_file, tmp_path)
    assert found.warnings == []
    assert {site.measured_share for layer in found.layers for site in layer.sites} == {1.0}
    assert "saw fewer" not in files_of(tmp_path / "out")["report.html"].decode()
