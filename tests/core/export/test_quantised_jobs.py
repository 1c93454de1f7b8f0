"""Whole jobs with exports in 8 bits: what is published, measured, refused, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize, quantize
from typer.testing import CliRunner

from strucprune_core.commands import figures
from strucprune_core.commands.main import app
from strucprune_core.errors import InvalidSpec, QualityCollapsed, Stopped
from strucprune_core.evaluation.standalone import verify_checkpoint
from strucprune_core.export import checks
from strucprune_core.pipeline import run_job
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.memory.host import host_terms
from strucprune_core.report.html import render_html
from strucprune_core.report.numbers import number
from strucprune_core.run import shards
from strucprune_core.run.steps import evaluate
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import EASY, StopAt, checkpoint_of, files_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

ALL = ["gguf", "gguf_q8_0", "fp8"]
Q8 = GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    return make_tiny_llama(root, layers=2, intermediate=96, dtype=torch.bfloat16)


def spec_of(model: Path, text: Path, out: Path, **pruning: Any) -> JobSpec:
    return tiny_spec(model, text, out, pruning={"exports": ALL, **pruning}, evaluation=EASY)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path, text_file: Path) -> Path:
    root = tmp_path_factory.mktemp("done")
    run(spec_of(model, text_file, root / "out"), root)
    return root / "out"


def test_what_lies_beside_the_checkpoint(done: Path) -> None:
    found = {name for name in files_of(done) if "/" in name}
    assert {name for name in found if not name.startswith("fp8/")} == {
        "gguf/model.gguf",
        "gguf_q8_0/model.gguf",
    }
    copied = {name for name in files_of(done) if "/" not in name}
    reports = {"README.md", "report.json", "report.html", "strucprune.json"}
    assert {name.removeprefix("fp8/") for name in found if "fp8" in name} == copied - reports
    assert verify_checkpoint(str(done))["files"] > len(found)


def test_their_perplexity_is_reported(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    sixteen, q8_0, fp8 = report["exports"]
    assert sixteen["perplexity"] is None
    for export in (q8_0, fp8):
        after = report["perplexity"]["after"]
        assert export["perplexity"] != after
        assert export["perplexity"] == pytest.approx(after, rel=0.05)
        check = export["verification"]
        assert check["max_abs_logit_difference"] <= check["tolerance"]
        figure = f"Its perplexity is {number(export['perplexity'])}"
        assert figure in (done / "report.html").read_text()
    assert fp8["bytes"] < 0.9 * report["after"]["bytes"] + 60_000  # and a tokenizer and code


def test_blocks_are_those_of_the_reference(done: Path) -> None:
    """Against ggml's own Python package, from the 16 bits of the other export."""
    wide, narrow = (GGUFReader(done / each / "model.gguf") for each in ("gguf", "gguf_q8_0"))
    stored = {tensor.name: tensor for tensor in narrow.tensors}
    kinds = set()
    for tensor in wide.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        found = stored.pop(tensor.name)
        assert tuple(found.shape) == tuple(tensor.shape)
        if values.ndim == 1:
            expected, kind = values, GGMLQuantizationType.F32
        elif values.shape[1] % 32:
            expected, kind = values.astype(np.float16), GGMLQuantizationType.F16
        else:
            expected, kind = quantize(values, Q8), Q8
        assert found.tensor_type == kind, tensor.name
        assert np.array_equal(found.data, expected), tensor.name
        kinds.add(kind)
    assert not stored
    assert len(kinds) == 3
    expected = {"general.file_type": 7, "general.quantization_version": 2}
    for key, value in expected.items():
        field = narrow.get_field(key)
        assert field is not None
        assert (field.types, field.contents()) == ([GGUFValueType.UINT32], value)


def test_what_stays_wide_is_said(model: Path, text_file: Path, tmp_path: Path, done: Path) -> None:
    warnings = json.loads((done / "report.json").read_text())["warnings"]
    tensors = GGUFReader(done / "gguf_q8_0/model.gguf").tensors
    wide = sum(tensor.tensor_type == GGMLQuantizationType.F16 for tensor in tensors)
    expected = f"{wide} of 15 matrices of gguf_q8_0 are stored in 16 bits"
    assert any(expected in each for each in warnings)
    facts = inspect_model(LocalStore(model))
    early = estimate_job(spec_of(model, text_file, tmp_path), facts).warnings
    assert any("multiple_of" in each and "Q8_0" in each for each in early)
    fitting = spec_of(model, text_file, tmp_path / "out", multiple_of=32)
    assert not any("Q8_0" in each for each in estimate_job(fitting, facts).warnings)
    report = run(fitting, tmp_path)
    assert not any("gguf_q8_0" in each for each in report.warnings)


def test_stopped_again_and_again(tmp_path: Path, model: Path, text_file: Path, done: Path) -> None:
    spec, stops = spec_of(model, text_file, tmp_path / "out"), 0
    for _ in range(100):
        try:
            run(spec, tmp_path, stop=StopAt(30))
            break
        except Stopped:
            stops += 1
            if (tmp_path / "out").exists():  # publishing starts anew each time
                run(spec, tmp_path)
                break
    assert stops > 3
    assert checkpoint_of(tmp_path / "out") == checkpoint_of(done)


def test_several_files_and_removed_blocks(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of tensors change with the layers before them; factors follow their matrices."""
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 60_000)
    model = make_tiny_llama(tmp_path / "model", layers=4, intermediate=96)
    changes = {"structures": ["layers"], "sparsity": 0.3, "exports": ["fp8"]}
    report = run(spec_of(model, text_file, tmp_path / "out", **changes), tmp_path)
    assert report.blocks
    index = json.loads((tmp_path / "out/fp8/model.safetensors.index.json").read_text())
    names = index["weight_map"]
    assert len(set(names.values())) > 2
    factors = {name for name in names if name.endswith("_scale")}
    assert {name.removesuffix("_scale") for name in factors} <= set(names)
    left = json.loads((tmp_path / "out/fp8/config.json").read_text())["num_hidden_layers"]
    assert len(factors) == 7 * left
    assert left < 4


def worsen(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Multiply the job's nth perplexity: first the dense model's, then the pruned one's."""
    measured, found = evaluate._perplexity, []

    def worse(job: Any, stream: Any) -> float:
        found.append(measured(job, stream))
        return found[-1] * (1e7 if len(found) == number else 1.0)

    monkeypatch.setattr(evaluate, "_perplexity", worse)


def test_none_is_made_of_a_model_that_is_refused(
    tmp_path: Path, model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsen(monkeypatch, 2)
    with pytest.raises(QualityCollapsed) as refused:
        run(spec_of(model, text_file, tmp_path / "out"), tmp_path)
    assert refused.value.field == "pruning.sparsity"
    units = {path.name for path in (tmp_path / "workspace/units").iterdir()}
    assert "gguf" in units
    assert not {"gguf_q8_0", "fp8.0"} & units


def test_an_export_that_ruins_the_model_is_refused(
    tmp_path: Path, model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsen(monkeypatch, 3)
    with pytest.raises(QualityCollapsed, match="in the export fp8") as refused:
        run(spec_of(model, text_file, tmp_path / "out", exports=["fp8"]), tmp_path)
    assert refused.value.field == "pruning.exports"
    assert "'fp8'" in str(refused.value.remedy)
    assert not (tmp_path / "out").exists()


def test_of_several_sizes_the_others_are_published(
    tmp_path: Path, model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, calls = evaluate._perplexity, 0

    def worse(job: Any, stream: Any) -> float:
        nonlocal calls
        found = measured(job, stream)
        if job.size == "0.4":
            calls += 1
            return found * (1e7 if calls == 2 else 1.0)  # of the export
        return found

    monkeypatch.setattr(evaluate, "_perplexity", worse)
    changes = {"sparsity": None, "sizes": [0.2, 0.4], "exports": ["gguf_q8_0"]}
    run_job(
        spec_of(model, text_file, tmp_path / "out", **changes),
        workspace=LocalStore(tmp_path / "workspace"),
        scratch=tmp_path / "scratch",
        open_store=lambda uri: LocalStore(Path(uri)),
    )
    assert calls == 2
    files = {name for name in files_of(tmp_path / "out") if name.endswith("model.gguf")}
    assert files == {"0.2/gguf_q8_0/model.gguf"}


def test_without_evaluation_there_is_no_figure(
    tmp_path: Path, model: Path, text_file: Path
) -> None:
    changes = {"exports": ["gguf_q8_0", "fp8"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=changes, evaluation=None)
    report = run(spec, tmp_path)
    assert [export.perplexity for export in report.exports] == [None, None]
    assert "Its perplexity" not in render_html(report)


def test_fp8_needs_its_package(
    tmp_path: Path, model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(InvalidSpec, match="compressed-tensors") as refused:
        run(spec_of(model, text_file, tmp_path / "out"), tmp_path)
    assert refused.value.field == "pruning.exports"
    assert "strucprune[fp8]" in str(refused.value.remedy)
    assert not (tmp_path / "workspace").exists()
    run(spec_of(model, text_file, tmp_path / "out", exports=["gguf_q8_0"]), tmp_path)


def test_the_estimate_knows_them(model: Path, text_file: Path, done: Path) -> None:
    facts = inspect_model(LocalStore(model))
    spec = spec_of(model, text_file, Path("out"), multiple_of=32)
    estimate = estimate_job(spec, facts)
    weights = (done / "fp8/model.safetensors").stat().st_size
    assert estimate.export_bytes["fp8"] == pytest.approx(weights, rel=0.1)
    ratio = estimate.export_bytes["gguf_q8_0"] / estimate.export_bytes["gguf"]
    assert ratio == pytest.approx(34 / 64, rel=0.02)
    plain = spec_of(model, text_file, Path("out"), multiple_of=32, exports=["gguf"])
    assert host_terms(spec, facts.config)["exports"] > host_terms(plain, facts.config)["exports"]
    assert estimate.flops["evaluation"] == 2 * estimate_job(plain, facts).flops["evaluation"]


def test_the_command(tmp_path: Path, model: Path, text_file: Path) -> None:
    arguments = ["prune", model, "--output", tmp_path / "out", "--calibration", text_file]
    arguments += ["--evaluation", text_file, "--evaluation-sequences", "2"]
    arguments += ["--evaluation-sequence-length", "32", "--max-perplexity-ratio", "1e6"]
    arguments += ["--sparsity", "0.3", "--samples", "8", "--sequence-length", "32"]
    arguments += ["--export", "gguf_q8_0", "--export", "fp8"]
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    for export in report["exports"]:
        shown = f"{export['folder']}, perplexity {figures.number(export['perplexity'])}"
        assert shown in done.output
