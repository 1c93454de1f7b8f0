"""Whole jobs in bfloat16: every step runs, the result is as good, and the report says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models.generic.mixed_precision import check_residual
from strucprune_core.plan.pieces import plan_job
from strucprune_core.run import context, opening
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import saved_variant
from tests.core.models.generic.tiny import save_tiny
from tests.core.models.reference import open_stream
from tests.support.tiny_llama import make_tiny_llama

NARROW = {"precision": "bfloat16"}
# Of perplexities. Rounding changes which of a random model's channels go, since all are alike. Of
# generic models some have experts, whose choice it changes too, and recurrent mixers.
DENSE, DENSE_GENERIC, PRUNED = 0.005, 0.02, 0.05
# Plain; experts; gpt2's matrices are stored the other way; post-norms and soft caps.
FAMILIES = ["llama", "mixtral", "gpt2", "gemma2"]
# Plain; fused projections and ALiBi; routed and shared experts; recurrent mixers beside FFNs.
GENERIC = ["olmo2", "bloom", "exaone_moe", "glm4", "nemotron_h"]
# Everything that computes with layers, beside what each job does.
THOROUGH: dict[str, Any] = {
    "energy": "gradient",
    "recover": {"steps": 4},
    "distill": {"steps": 2, "batch_sequences": 2},
}


def perplexities(model: Path, text: Path, root: Path, **sections: Any) -> tuple[float, float]:
    """Those of the dense and of the pruned model."""
    report = run(tiny_spec(model, text, root / "out", **sections), root)
    assert report.perplexity is not None
    assert report.environment.precision == sections["runtime"]["precision"]
    return report.perplexity.before, report.perplexity.after


def assert_near(found: dict[str, tuple[float, float]], dense: float) -> None:
    for wide, narrow, share in zip(*found.values(), (dense, PRUNED), strict=True):
        assert narrow == pytest.approx(wide, rel=share)


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_job_in_bfloat16_is_near_one_in_float32(
    variant: str, text_file: Path, tmp_path: Path
) -> None:
    model = saved_variant(variant, tmp_path / "model")
    pruning = {"sparsity": 0.3, "allocation": "uniform"}
    found = {
        precision: perplexities(
            model,
            text_file,
            tmp_path / precision,
            pruning=pruning,
            evaluation=EASY,
            runtime={"precision": precision},
        )
        for precision in ("float32", "bfloat16")
    }
    assert_near(found, DENSE)
    assert found["float32"] != found["bfloat16"]


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_step_runs_in_bfloat16(variant: str, text_file: Path, tmp_path: Path) -> None:
    model = saved_variant(variant, tmp_path / "model")
    evaluation = {**EASY, "samples": True, "sample_tokens": 4}
    pruning = {"sparsity": 0.3, "structures": ["ffn_channels", "kv_groups"], **THOROUGH}
    calibration = {"source": "self", "uri": None}
    spec = tiny_spec(
        model,
        text_file,
        tmp_path / "out",
        pruning=pruning,
        calibration=calibration,
        evaluation=evaluation,
        runtime=NARROW,
    )
    report = run(spec, tmp_path)
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize("panels", [False, True], ids=["whole", "panels"])
def test_probes_and_panels_in_bfloat16(panels: bool, text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", dtype=torch.bfloat16)
    runtime = {**NARROW, "device_memory_bytes": 1_300_000} if panels else NARROW
    spec = tiny_spec(model, text_file, tmp_path / "out", evaluation=EASY, runtime=runtime)
    report = run(spec, tmp_path)
    assert not [line for line in report.warnings if "runtime.precision" in line]
    if panels:
        peak = report.memory.device_peak_bytes.measured
        assert peak is not None
        assert peak <= plan_job(spec, open_stream(model).config).device_peak_bytes


def test_blocks_go_in_bfloat16(text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", dtype=torch.bfloat16)
    pruning = {"sparsity": 0.3, "structures": ["layers"], "multiple_of": 1}
    report = run(
        tiny_spec(
            model, text_file, tmp_path / "out", pruning=pruning, evaluation=EASY, runtime=NARROW
        ),
        tmp_path,
    )
    assert report.sparsity.blocks_removed > 0


@pytest.mark.parametrize("model_type", GENERIC)
def test_generic_models_bear_bfloat16(model_type: str, text_file: Path, tmp_path: Path) -> None:
    model = save_tiny(model_type, tmp_path / "model")
    found = {
        precision: perplexities(
            model,
            text_file,
            tmp_path / precision,
            pruning={"sparsity": 0.3, "allocation": "uniform", **THOROUGH},
            evaluation=EASY,
            runtime={"precision": precision},
        )
        for precision in ("float32", "bfloat16")
    }
    assert_near(found, DENSE_GENERIC)
    assert found["float32"] != found["bfloat16"]


def test_a_layer_that_rounds_the_residual_stream_is_refused() -> None:
    check_residual(torch.zeros(1))
    with pytest.raises(UnsupportedArchitecture, match="residual stream to bfloat16") as found:
        check_residual(torch.zeros(1, dtype=torch.bfloat16))
    assert found.value.field == "runtime.precision"


@pytest.mark.parametrize("memory", [None, 1_300_000], ids=["whole", "panels"])
def test_solves_in_float32(
    memory: int | None, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_llama(tmp_path / "model")
    pruning = {"structures": ["ffn_channels", "kv_groups"], "allocation": "uniform"}
    found = {}
    for dtype in (torch.float64, torch.float32):
        monkeypatch.setattr(opening, "solve_dtype", lambda _, dtype=dtype: dtype)
        root = tmp_path / str(dtype)
        runtime = {"device_memory_bytes": memory}
        spec = tiny_spec(model, text_file, root / "out", pruning=pruning, runtime=runtime)
        found[dtype] = report = run(spec, root)
        name, sites = str(dtype).removeprefix("torch."), 2 * len(report.layers)
        assert report.environment.solve_dtype == name
        assert report.solves is not None
        assert report.solves.curves == report.solves.repairs == {name: sites}
        if memory is not None:
            peak = report.memory.device_peak_bytes.measured
            assert peak is not None
            assert peak <= plan_job(spec, open_stream(model).config).device_peak_bytes
    wide, narrow = (each.perplexity for each in found.values())
    assert wide is not None
    assert narrow is not None
    assert narrow.after == pytest.approx(wide.after, rel=1e-3)


def test_wide_curves_are_computed_in_float32_on_a_cpu(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_llama(tmp_path / "model")
    pruning = {"structures": ["ffn_channels", "kv_groups"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning)
    config = open_stream(model).config
    attention = config.blocks[0].query_heads * config.head_dim
    assert attention < max(config.blocks[0].ffn_widths)
    monkeypatch.setattr(context, "WIDE_COLUMNS", attention)
    report = run(spec, tmp_path)
    assert report.solves is not None
    each = len(report.layers)
    assert report.solves.curves == {"float32": each, "float64": each}
    assert report.solves.repairs == {"float64": 2 * each}
