"""Models in FP8 are read as the numbers that they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors import quantization
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from strucprune_core.checkpoint import reader as reader_module
from strucprune_core.checkpoint.index import open_checkpoint, read_in
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from tests.support.fp8 import Scheme, in_fp8, quantise

NAME = "model.layers.1.mlp.down_proj.weight"
FINE = {"quant_method": "fp8", "weight_block_size": [32, 16]}


def plain(stored: Tensor, factors: Tensor, block: tuple[int, int]) -> Tensor:
    """Each number by itself, as the formula has it."""
    rows, columns = stored.shape
    result = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            factor = factors[i // block[0], j // block[1]].float()
            result[i, j] = stored[i, j].float() * factor
    return result


def written(path: Path, tensors: dict[str, Tensor], section: dict[str, Any]) -> Path:
    config = {"dtype": "bfloat16", "quantization_config": section}
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("piece_bytes", [1, 1000, 2**25])
@pytest.mark.parametrize("block", [(32, 16), (128, 128), (1, 7), (30, 40)])
def test_each_number_by_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, block: tuple[int, int]
) -> None:
    monkeypatch.setattr(reader_module, "PIECE_BYTES", piece_bytes)
    stored, factors = quantise(torch.randn(70, 50), block, torch.float32)
    section = {**FINE, "weight_block_size": list(block)}
    model = written(tmp_path, {"a.weight": stored, "a.weight_scale_inv": factors}, section)
    index = open_checkpoint(LocalStore(model))
    expected = plain(stored, factors, block)
    reader = TensorReader(index)
    assert set(index.tensors) == {"a.weight"}
    assert index.tensors["a.weight"].dtype == "BF16"
    assert torch.equal(reader.tensor("a.weight", dtype=None), expected.bfloat16())
    assert torch.equal(reader.rows("a.weight", 31, 66, dtype=None), expected[31:66].bfloat16())
    assert torch.equal(torch.cat(list(reader.pieces("a.weight"))), expected.bfloat16())
    assert torch.equal(TensorReader(read_in(index, "float32")).tensor("a.weight"), expected)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_transformers_dequantises_alike(tmp_path: Path, factors: torch.dtype) -> None:
    stored, grid = quantise(torch.randn(64, 48), (32, 16), factors)
    model = written(tmp_path, {"a.weight": stored, "a.weight_scale_inv": grid}, FINE)
    reader = TensorReader(open_checkpoint(LocalStore(model)))
    theirs = Fp8Dequantize(None)._dequantize_one(stored, grid, torch.bfloat16)
    assert torch.equal(reader.tensor("a.weight", dtype=None), theirs)


@pytest.mark.parametrize("experts", [(), (3,)])
def test_factors_that_are_exponents(tmp_path: Path, experts: tuple[int, ...]) -> None:
    """scale_fmt "ue8m0": every exponent that the format has, but NaN."""
    stored = torch.randn(*experts, 60, 68).to(torch.float8_e4m3fn)
    exponents = torch.arange(255, dtype=torch.uint8).view(15, 17).expand(*experts, 15, 17)
    grid = exponents.contiguous().view(torch.float8_e8m0fnu)
    section = {**FINE, "weight_block_size": [4, 4], "scale_fmt": "ue8m0"}
    tensors = {"a.weight": stored, "a.weight_scale_inv": grid}
    index = open_checkpoint(LocalStore(written(tmp_path, tensors, section)))
    powers = torch.pow(2.0, exponents.double() - 127)
    powers = powers.repeat_interleave(4, dim=-2).repeat_interleave(4, dim=-1)
    expected = (stored.double() * powers).float().bfloat16()
    assert index.tensors.keys() == {"a.weight"}
    found = TensorReader(index).tensor("a.weight", dtype=None)
    assert torch.equal(found, expected)
    theirs = Fp8Dequantize(None)._dequantize_one(stored, grid, torch.bfloat16)
    assert torch.equal(found, theirs)


def test_exponents_of_something_else_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    tensors = load_file(model / "model.safetensors")
    tensors[NAME] = torch.ones_like(tensors[NAME]).to(torch.float8_e8m0fnu)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="dtype F8_E8M0") as caught:
        inspect_model(LocalStore(model))
    assert "unquantised" in str(caught.value.remedy)


@pytest.mark.parametrize("scheme", ["tensor", "channel", "block"])
def test_compressed_tensors_dequantises_alike(
    tiny_model: Path, tmp_path: Path, scheme: Scheme
) -> None:
    # Its blocks divide the matrix.
    model = in_fp8(tiny_model, tmp_path / "m", scheme, block=(32, 16), factors=torch.bfloat16)
    tensors = load_file(model / "model.safetensors")
    section = json.loads((model / "config.json").read_text())["quantization_config"]
    settings = quantization.QuantizationArgs(**section["config_groups"]["group_0"]["weights"])
    forward = quantization.lifecycle.forward
    theirs = forward.dequantize(tensors[NAME], tensors[f"{NAME}_scale"], args=settings)
    reader = TensorReader(open_checkpoint(LocalStore(model)))
    assert torch.equal(reader.tensor(NAME, dtype=None), theirs.bfloat16())


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    each = [quantise(torch.randn(40, 24), (32, 16), torch.float32) for _ in range(3)]
    stored, factors = (torch.stack(parts) for parts in zip(*each, strict=True))
    model = written(tmp_path, {"e.down": stored, "e.down_scale_inv": factors}, FINE)
    reader = TensorReader(open_checkpoint(LocalStore(model)))
    expected = torch.stack([plain(*one, (32, 16)) for one in each]).bfloat16()
    assert torch.equal(reader.tensor("e.down", dtype=None), expected)
    assert torch.equal(reader.rows("e.down", 1, 2, dtype=None), expected[1:2])


def test_one_factor_for_all(tmp_path: Path) -> None:
    stored = torch.randn(8, 6).to(torch.float8_e4m3fn)
    section = {**FINE, "weight_block_size": None}
    tensors = {
        "a.weight": stored,
        "a.weight_scale_inv": torch.tensor(0.3),
        "a.activation_scale": torch.tensor(2.0),
    }
    index = open_checkpoint(LocalStore(written(tmp_path, tensors, section)))
    assert set(index.tensors) == {"a.weight"}
    expected = (stored.float() * torch.tensor(0.3)).bfloat16()
    assert torch.equal(TensorReader(index).tensor("a.weight", dtype=None), expected)


@pytest.mark.parametrize("scheme", ["fine-grained", "tensor", "channel", "block"])
def test_a_model_is_inspected_as_it_is_once_dequantised(
    tiny_model: Path, tmp_path: Path, scheme: Scheme
) -> None:
    index = inspect_model(LocalStore(in_fp8(tiny_model, tmp_path / "m", scheme))).index
    assert "quantization_config" not in json.loads(index.config_bytes)
    assert index.config["dtype"] == "bfloat16"
    assert {info.dtype for info in index.tensors.values()} == {"BF16"}
    parameters = sum(info.parameters for info in index.tensors.values())
    assert 2 * parameters < index.read_bytes < 2.1 * parameters + 2**14
    assert index.total_bytes < index.read_bytes
    wide = inspect_model(LocalStore(tmp_path / "m"), dtype="float32").index
    assert {info.dtype for info in wide.tensors.values()} == {"F32"}
    assert wide.config["dtype"] == "float32"
    assert wide.version() == index.version()


def test_what_is_stored_counts_as_the_version(tiny_model: Path, tmp_path: Path) -> None:
    model = in_fp8(tiny_model, tmp_path / "m", "fine-grained")
    before = open_checkpoint(LocalStore(model)).version()
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["scale_fmt"] = "float"
    (model / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(LocalStore(model)).version() != before


def test_float32_beside_narrower_numbers_stays(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(8, 8).half(), "correction": torch.randn(8), "n": torch.arange(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"torch_dtype": "float16"}')
    index = read_in(open_checkpoint(LocalStore(tmp_path)), "bfloat16")
    dtypes = {name: info.dtype for name, info in index.tensors.items()}
    assert dtypes == {"w": "BF16", "correction": "F32", "n": "I64"}
    assert index.config == {"torch_dtype": "bfloat16"}
    read = TensorReader(index)
    assert torch.equal(read.tensor("w", dtype=None), tensors["w"].bfloat16())
    assert torch.equal(read.tensor("correction", dtype=None), tensors["correction"])


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def _with(**changed: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, **{key.replace("__", "."): v for key, v in changed.items()}}


GRID = torch.ones(3, 4)
REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any], str]] = {
    "no factors": (_without("a.weight_scale_inv"), {}, "without factors"),
    "too many": (_with(a__weight_scale_inv=torch.ones(3, 5)), {}, "does not fit"),
    "transposed": (_with(a__weight_scale_inv=GRID.T.contiguous()), {}, "does not fit"),
    "whole numbers": (_with(a__weight_scale_inv=GRID.int()), {}, "cannot hold the factors"),
    "other blocks": (_with(), {"weight_block_size": [64, 16]}, "does not fit"),
    "no blocks": (_with(), {"weight_block_size": None}, "does not fit"),
    "absurd blocks": (_with(), {"weight_block_size": [0, 16]}, "not numbers of rows"),
    "one number": (_with(), {"weight_block_size": 16}, "not numbers of rows"),
    "no FP8": (_with(a__weight=torch.ones(70, 50)), {}, "no tensor is"),
    "fp4 experts": (_with(), {"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
}


@pytest.mark.parametrize(("change", "section", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    section: dict[str, Any],
    reason: str,
) -> None:
    stored = torch.ones(70, 50).to(torch.float8_e4m3fn)
    tensors = change({"a.weight": stored, "a.weight_scale_inv": GRID})
    model = written(tmp_path, tensors, {**FINE, **section})
    with pytest.raises((InvalidCheckpoint, UnsupportedArchitecture), match=reason) as caught:
        open_checkpoint(LocalStore(model))
    assert caught.value.remedy


COMPRESSED: dict[str, tuple[dict[str, Any], str]] = {
    "INT4": ({"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}, "quantised"),
    "packed": ({"format": "pack-quantized"}, "quantised"),
    "groups": ({"weights": {"strategy": "group"}}, "strategy 'group'"),
    "rotated": ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    "no groups": ({"config_groups": None}, "config_groups"),
}


@pytest.mark.parametrize(("changes", "reason"), COMPRESSED.values(), ids=COMPRESSED)
def test_other_forms_of_compressed_tensors(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    model = in_fp8(tiny_model, tmp_path / "m", "channel")
    config = json.loads((model / "config.json").read_text())
    section = config["quantization_config"]
    section["config_groups"]["group_0"]["weights"] |= changes.pop("weights", {})
    (model / "config.json").write_text(
        json.dumps({**config, "quantization_config": {**section, **changes}})
    )
    with pytest.raises((InvalidCheckpoint, UnsupportedArchitecture), match=reason):
        inspect_model(LocalStore(model))
