"""Jobs on models in FP8: the same as on the model that they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.evaluation.standalone import evaluate_model
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.inspection import read_job_model
from strucprune_core.spec import Dtype, JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from tests.core.jobs.tiny_job import EASY, checkpoint_of, run, tiny_spec, without_card
from tests.support.fp8 import Scheme, in_fp8
from tests.support.mxfp4 import in_mxfp4
from tests.support.tiny_experts import save_tiny_experts


def dequantised(model: Path, target: Path) -> Path:
    """The same model stored in bfloat16."""
    index = open_checkpoint(LocalStore(model))
    reader = TensorReader(index)
    target.mkdir()
    for name in index.other_files:
        (target / name).write_bytes((model / name).read_bytes())
    (target / "config.json").write_bytes(index.config_bytes)
    tensors = {name: reader.tensor(name, dtype=None) for name in index.tensors}
    save_file(tensors, target / "model.safetensors")
    return target


def stored_in(dtype: Dtype, spec: JobSpec) -> JobSpec:
    """The job with its result in another dtype."""
    return spec.model_copy(update={"output": spec.output.model_copy(update={"dtype": dtype})})


@pytest.mark.parametrize("scheme", ["fine-grained", "channel"])
def test_the_result_is_that_of_the_dequantised_model(
    tiny_model: Path, text_file: Path, tmp_path: Path, scheme: Scheme
) -> None:
    model = in_fp8(tiny_model, tmp_path / "fp8", scheme)
    plain = dequantised(model, tmp_path / "plain")
    specs = [tiny_spec(each, text_file, tmp_path / f"out-{each.name}") for each in (model, plain)]
    reports = [run(spec, tmp_path / f"run-{number}") for number, spec in enumerate(specs)]
    outputs = [tmp_path / f"out-{each.name}" for each in (model, plain)]
    results = [without_card(checkpoint_of(each)) for each in outputs]
    assert results[0] == results[1]
    config = json.loads(results[0]["config.json"])
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert reports[0].perplexity == reports[1].perplexity
    assert [any("FP8" in line for line in report.warnings) for report in reports] == [True, False]
    sizes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert reports[0].before.bytes == sizes
    assert reports[0].after.bytes == reports[1].after.bytes
    estimates = [estimate_job(spec, read_job_model(spec, open_store)) for spec in specs]
    assert estimates[0].bytes_before == sizes
    assert abs(estimates[0].bytes_after - estimates[1].bytes_after) < 2**14


def test_another_dtype(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    model = in_fp8(tiny_model, tmp_path / "fp8", "fine-grained")
    spec = stored_in("float32", tiny_spec(model, text_file, tmp_path / "out"))
    report = run(spec, tmp_path)
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert report.model.dtype == "F32"
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


def test_an_unquantised_model_in_another_dtype(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    spec = stored_in("bfloat16", tiny_spec(tiny_model, text_file, tmp_path / "out"))
    run(spec, tmp_path)
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    name = "model.layers.0.self_attn.q_proj.weight"
    dense = load_file(tiny_model / "model.safetensors")[name]
    assert torch.equal(tensors[name], dense.bfloat16())
    usual = tiny_spec(tiny_model, text_file, tmp_path / "out")
    assert spec.result_fingerprint() != usual.result_fingerprint()


def test_the_dense_model_is_evaluated(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    model = in_fp8(tiny_model, tmp_path / "fp8", "fine-grained")
    plain = dequantised(model, tmp_path / "plain")
    values = [
        evaluate_model(
            str(each),
            str(text_file),
            sequences=2,
            sequence_length=32,
            device="cpu",
            micro_batch_tokens=64,
            tick=lambda share: None,
        )["perplexity"]
        for each in (model, plain)
    ]
    assert values[0] == values[1]


def test_a_number_that_is_not_finite_is_named(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    model = in_fp8(tiny_model, tmp_path / "fp8", "fine-grained")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[f"{name}_scale_inv"][1, 0] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=name) as caught:
        run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert caught.value.layer == 2


def test_gpt_oss_in_mxfp4(text_file: Path, tmp_path: Path) -> None:
    source = save_tiny_experts("gpt_oss", tmp_path / "gpt_oss", intermediate_size=64)
    model = in_mxfp4(source, tmp_path / "mxfp4")
    plain = dequantised(model, tmp_path / "plain")
    reports = []
    for each in (model, plain):
        spec = tiny_spec(
            each,
            text_file,
            tmp_path / f"out-{each.name}",
            pruning={"sparsity": 0.25, "structures": ["experts"]},
            evaluation=EASY,
        )
        reports.append(run(spec, tmp_path / f"run-{each.name}"))
    results = [without_card(checkpoint_of(tmp_path / f"out-{name}")) for name in ("mxfp4", "plain")]
    # The order of tensors in a file follows that of the dense model's.
    of_mxfp4, of_plain = (load(each.pop("model.safetensors")) for each in results)
    assert results[0] == results[1]
    assert of_mxfp4.keys() == of_plain.keys()
    assert all(torch.equal(value, of_plain[name]) for name, value in of_mxfp4.items())
    assert of_mxfp4["model.layers.0.mlp.experts.gate_up_proj"].shape == (6, 64, 128)
    config = json.loads(results[0]["config.json"])
    assert "quantization_config" not in config
    assert (config["dtype"], config["num_local_experts"]) == ("bfloat16", 6)
    assert reports[0].perplexity == reports[1].perplexity
    assert [any("MXFP4" in line for line in each.warnings) for each in reports] == [True, False]
    assert reports[0].before.bytes == (model / "model.safetensors").stat().st_size
    assert reports[0].after.bytes == reports[1].after.bytes
