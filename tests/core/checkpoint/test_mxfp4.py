"""gpt-oss in MXFP4 is read as transformers dequantises it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from strucprune_core.checkpoint import reader as reader_module
from strucprune_core.checkpoint.index import open_checkpoint, read_in
from strucprune_core.checkpoint.quantised import OUTPUT_DTYPES
from strucprune_core.checkpoint.reader import TORCH_DTYPES, TensorReader
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.run.tensor_bytes import TensorBytes
from strucprune_core.storage.local import LocalStore
from tests.support.mxfp4 import SECTION, in_mxfp4
from tests.support.tiny_experts import save_tiny_experts

NAME = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpt_oss")
    plain = save_tiny_experts("gpt_oss", root / "plain", intermediate_size=64)
    return in_mxfp4(plain, root / "mxfp4")


def random_tensors(experts: int = 3, outputs: int = 40, blocks: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (experts, outputs, blocks)
    return {
        f"{NAME}_blocks": torch.randint(
            0, 256, (*shape, 16), dtype=torch.uint8, generator=generator
        ),
        f"{NAME}_scales": torch.randint(97, 157, shape, dtype=torch.uint8, generator=generator),
    }


def written(path: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    config = {"model_type": "gpt_oss", "quantization_config": SECTION, **changes}
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


def by_transformers(tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    blocks, scales = (tensors[f"{NAME}_{each}"] for each in ("blocks", "scales"))
    result: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    return result


def equal_bits(left: Tensor, right: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(kind), right.view(kind))


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
@pytest.mark.parametrize("piece_bytes", [1, 1000, 2**25])
def test_each_bit_as_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, dtype: str
) -> None:
    monkeypatch.setattr(reader_module, "PIECE_BYTES", piece_bytes)
    tensors = random_tensors()
    index = read_in(open_checkpoint(LocalStore(written(tmp_path, tensors))), dtype)
    assert index.tensors.keys() == {NAME}
    assert index.tensors[NAME].dtype == OUTPUT_DTYPES[dtype]
    assert index.tensors[NAME].shape == (3, 96, 40)
    theirs = by_transformers(tensors, TORCH_DTYPES[OUTPUT_DTYPES[dtype]])
    reader = TensorReader(index)
    assert equal_bits(reader.tensor(NAME, dtype=None), theirs)
    assert equal_bits(reader.rows(NAME, 1, 3, dtype=None), theirs[1:3])
    assert equal_bits(torch.cat(list(reader.pieces(NAME))), theirs)
    assert torch.equal(reader.rows(NAME, 2, 3), theirs[2:3].float())
    assert reader.rows(NAME, 1, 1).shape == (0, 96, 40)


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES)
def test_every_number_with_every_exponent(tmp_path: Path, dtype: str) -> None:
    """Also those that overflow, and those that are rounded since they are very small."""
    pairs = torch.arange(16, dtype=torch.uint8) * 17
    tensors = {
        f"{NAME}_blocks": pairs.expand(1, 256, 1, 16).contiguous(),
        f"{NAME}_scales": torch.arange(256, dtype=torch.uint8).view(1, 256, 1),
    }
    index = read_in(open_checkpoint(LocalStore(written(tmp_path, tensors))), dtype)
    theirs = by_transformers(tensors, TORCH_DTYPES[OUTPUT_DTYPES[dtype]])
    found = TensorReader(index).tensor(NAME, dtype=None)
    assert torch.equal(found.isnan(), theirs.isnan())
    assert equal_bits(found.nan_to_num(), theirs.nan_to_num())


def test_no_more_than_a_piece_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    class Watched(LocalStore):
        def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
            data = super().read(key, start, length)
            lengths.append(len(data))
            return data

    tensors = random_tensors(experts=2, outputs=512, blocks=4)
    index = open_checkpoint(Watched(written(tmp_path, tensors)))
    lengths.clear()
    monkeypatch.setattr(reader_module, "PIECE_BYTES", 2**14)
    read = TensorReader(index).rows(NAME, 1, 2, dtype=None)
    assert equal_bits(read, by_transformers(tensors, torch.bfloat16)[1:2])
    assert max(lengths) <= 2**14 // 8
    stored = sum(value.numel() for value in tensors.values())
    assert sum(lengths) == stored // 2


def test_it_takes_little_more_memory_than_an_unquantised_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory plan knows of the expert in float32, and in its stored dtype."""
    tensors = random_tensors(experts=2, outputs=512, blocks=16)
    index = open_checkpoint(LocalStore(written(tmp_path, tensors)))
    reader = TensorReader(index)
    monkeypatch.setattr(reader_module, "PIECE_BYTES", 2**16)
    with torch.inference_mode(), TensorBytes() as counted:
        read = reader.rows(NAME, 1, 2)
        peak = counted.take_peak()
    expert = read.numel()
    assert 4 * expert < peak <= (4 + 2) * expert + 3 * 2**16


def test_tensors_of_the_unquantised_model(gpt_oss: Path) -> None:
    index = inspect_model(LocalStore(gpt_oss)).index
    plain = load_file(gpt_oss.parent / "plain/model.safetensors")
    shapes = {name: tuple(value.shape) for name, value in plain.items()}
    assert {name: info.shape for name, info in index.tensors.items()} == shapes
    assert {info.dtype for info in index.tensors.values()} == {"BF16"}
    assert index.quantised == "MXFP4"
    assert "quantization_config" not in json.loads(index.config_bytes)
    assert index.config["dtype"] == "bfloat16"
    parameters = sum(value.numel() for value in plain.values())
    assert 2 * parameters < index.read_bytes < 2 * parameters + 2**14
    assert index.total_bytes < index.read_bytes


def test_transformers_loads_the_same_weights(gpt_oss: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gpt_oss, dtype=torch.bfloat16)
    reader = TensorReader(inspect_model(LocalStore(gpt_oss)).index)
    theirs = model.state_dict()
    for name, value in theirs.items():
        assert torch.equal(reader.tensor(name, dtype=None), value), name


def test_mxfp4_of_another_model_is_refused(gpt_oss: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    tensors = load_file(tiny_model / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    model = written(tmp_path, tensors, **config)
    with pytest.raises(UnsupportedArchitecture, match="quant_method 'mxfp4'") as caught:
        inspect_model(LocalStore(model))
    assert "unquantised" in str(caught.value.remedy)


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
BLOCKS, SCALES = f"{NAME}_blocks", f"{NAME}_scales"
REFUSED: dict[str, tuple[Change, str]] = {
    "no scales": (lambda t: {BLOCKS: t[BLOCKS]}, "without its scales"),
    "no blocks": (lambda t: {SCALES: t[SCALES]}, "no tensor is"),
    "scales alone": (lambda t: {**t, "b.up_scales": t[SCALES].clone()}, "without its blocks"),
    "other scales": (lambda t: {**t, SCALES: t[SCALES][:, :-1].contiguous()}, "do not fit"),
    "signed scales": (lambda t: {**t, SCALES: t[SCALES].to(torch.int8)}, "do not fit"),
    "other blocks": (lambda t: {**t, BLOCKS: t[BLOCKS][..., :8].contiguous()}, "do not fit"),
    "floats": (lambda t: {**t, BLOCKS: t[BLOCKS].float()}, "do not fit"),
    "one matrix": (lambda t: {BLOCKS: t[BLOCKS][0], SCALES: t[SCALES][0]}, "do not fit"),
    "twice": (lambda t: {**t, NAME: torch.ones(3, 96, 40)}, "twice"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: Change, reason: str) -> None:
    model = written(tmp_path, change(random_tensors()))
    with pytest.raises(InvalidCheckpoint, match=reason) as caught:
        open_checkpoint(LocalStore(model))
    assert caught.value.remedy
