"""NaN and Inf in the weights: found by reading, before any heavy work, and named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from strucprune_core.errors import InvalidCheckpoint, NumericalFailure, StrucPruneError
from tests.core.commands.calling import call, prune_command
from tests.core.jobs.spoiled import FILE, spoiled
from tests.core.jobs.tiny_job import run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama


def refused(model: Path, text: Path, root: Path) -> StrucPruneError:
    """The error of a job; nothing but its texts may have been worked on by then."""
    with pytest.raises(InvalidCheckpoint) as caught:
        run(tiny_spec(model, text, root / "out"), root)
    done = {path.parent.name for path in (root / "workspace/units").glob("*/manifest.json")}
    assert done <= {"tokens"}
    assert (caught.value.field, caught.value.phase) == ("model.uri", "inspecting")
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_value(
    tiny_model: Path, text_file: Path, tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    name = "model.layers.3.mlp.down_proj.weight"
    model = spoiled(tiny_model, tmp_path / "model", name, [value], dtype)
    error = refused(model, text_file, tmp_path / "job")
    assert error.layer == 3
    kind = "NaN" if math.isnan(value) else "infinite"
    for part in (name, FILE, "1 of 12,288 values", f"1 {kind}"):
        assert part in error.message


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_tensors_outside_the_layers(
    tiny_model: Path, text_file: Path, tmp_path: Path, name: str
) -> None:
    model = spoiled(tiny_model, tmp_path / "model", name, [math.nan, math.inf, -math.inf])
    error = refused(model, text_file, tmp_path / "job")
    assert error.layer is None
    assert name in error.message
    assert "1 NaN, 2 infinite" in error.message


def test_the_head(text_file: Path, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "untied", tie=False)
    broken = spoiled(model, tmp_path / "model", "lm_head.weight", [math.inf])
    assert "lm_head.weight" in refused(broken, text_file, tmp_path / "job").message


def test_what_float32_cannot_hold(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    model = spoiled(tiny_model, tmp_path / "model", name, [1e39], torch.float64)
    error = refused(model, text_file, tmp_path / "job")
    assert "1 infinite" in error.message
    assert error.layer == 0


def test_large_but_finite_values_are_no_matter_of_the_file(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    model = spoiled(tiny_model, tmp_path / "model", name, [3.4e38] * 64)
    with pytest.raises(NumericalFailure):  # Not the checkpoint: activations overflow.
        run(tiny_spec(model, text_file, tmp_path / "job/out"), tmp_path / "job")


def test_the_command_names_the_layer(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.gate_proj.weight"
    model = spoiled(tiny_model, tmp_path / "model", name, [math.nan])
    result = call(*prune_command(model, text_file, tmp_path / "out"), "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["layer"]) == ("invalid_checkpoint", 2)
    assert "(layer 2, inspecting)" in " ".join(result.stderr.split())


def test_evaluate_names_the_tensor(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.gate_proj.weight"
    model = spoiled(tiny_model, tmp_path / "model", name, [math.nan])
    windows = ("--sequences", "2", "--sequence-length", "32")
    result = call("evaluate", model, "--text", text_file, *windows, "--json")
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "invalid_checkpoint"
    assert name in error["message"]
