from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from strucprune_core.checkpoint.file_names import SHARD_INDEX
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TORCH_DTYPES, TensorReader
from strucprune_core.checkpoint.writer import (
    PlannedTensor,
    Shard,
    index_json,
    plan_shards,
    write_shard,
)
from strucprune_core.errors import NumericalFailure, StrucPruneError
from strucprune_core.storage.local import LocalStore

TENSORS = {
    "bf16": torch.randn(3, 5).bfloat16(),
    "f32": torch.randn(4, 4),
    "scalar": torch.tensor(2.5),
    "i64": torch.arange(3),
    "bool": torch.tensor([True, False, True]),
    "f16": torch.randn(7).half(),
    "empty": torch.zeros(0, 3),
}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
PLAN = [PlannedTensor(n, NAMES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()]


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    (shard,) = plan_shards(PLAN, 2**30)
    path = tmp_path / shard.file_name
    sha256 = write_shard(path, shard, TENSORS.__getitem__)
    assert shard.file_name == "model.safetensors"
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0


def test_tensors_are_aligned_to_their_items(tmp_path: Path) -> None:
    (shard,) = plan_shards(PLAN, 2**30)
    write_shard(tmp_path / shard.file_name, shard, TENSORS.__getitem__)
    (tmp_path / "config.json").write_text("{}")
    for info in open_checkpoint(LocalStore(tmp_path)).tensors.values():
        assert info.start % TENSORS[info.name].element_size() == 0


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    (shard,) = plan_shards(PLAN, 2**30)
    hashes = {write_shard(tmp_path / str(n), shard, TENSORS.__getitem__) for n in range(2)}
    assert len(hashes) == 1


def test_shards_and_index(tmp_path: Path) -> None:
    plan = [PlannedTensor(f"t{n}", "F32", (10,)) for n in range(5)]
    plan.append(PlannedTensor("large", "F32", (100,)))
    shards = plan_shards(plan, 80)
    assert [[t.name for t in shard.tensors] for shard in shards] == [
        ["t0", "t1"],
        ["t2", "t3"],
        ["t4"],
        ["large"],
    ]
    assert [shard.size_bytes for shard in shards] == [80, 80, 40, 400]
    assert shards[0].file_name == "model-00001-of-00004.safetensors"
    for shard in shards:
        write_shard(
            tmp_path / shard.file_name, shard, lambda name: torch.full(shape_of(plan, name), 2.0)
        )
    (tmp_path / SHARD_INDEX).write_bytes(index_json(shards))
    (tmp_path / "config.json").write_text("{}")
    index = open_checkpoint(LocalStore(tmp_path))
    assert set(index.tensors) == {t.name for t in plan}
    assert torch.equal(TensorReader(index).tensor("large"), torch.full((100,), 2.0))
    document = json.loads(index_json(shards))
    assert document["metadata"] == {"total_parameters": 150, "total_size": 600}


def shape_of(plan: list[PlannedTensor], name: str) -> tuple[int, ...]:
    return next(t.shape for t in plan if t.name == name)


def test_tensors_are_asked_for_once_and_in_file_order(tmp_path: Path) -> None:
    (shard,) = plan_shards(PLAN, 2**30)
    asked: list[str] = []

    def produce(name: str) -> torch.Tensor:
        asked.append(name)
        return TENSORS[name]

    write_shard(tmp_path / "x", shard, produce)
    assert asked == [tensor.name for tensor in shard.tensors]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E5M2"])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, dtype: str) -> None:
    shard = Shard("x", (PlannedTensor("w", dtype, (2,)),))
    tensor = torch.tensor([1.0, value]).to(TORCH_DTYPES[dtype])
    with pytest.raises(NumericalFailure, match="'w'") as caught:
        write_shard(tmp_path / "x", shard, lambda _: tensor)
    # Most tensors are copied from the model: no damping repairs what was broken there.
    assert "own weights" in str(caught.value.remedy)
    assert not (tmp_path / "x").exists()


def test_large_float64_is_finite(tmp_path: Path) -> None:
    shard = Shard("x", (PlannedTensor("w", "F64", (1,)),))
    write_shard(tmp_path / "x", shard, lambda _: torch.tensor([1e300], dtype=torch.float64))


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2).half()])
def test_tensors_that_were_not_planned_so(tmp_path: Path, wrong: torch.Tensor) -> None:
    shard = Shard("x", (PlannedTensor("w", "F32", (2,)),))
    with pytest.raises(StrucPruneError, match="was planned"):
        write_shard(tmp_path / "x", shard, lambda _: wrong)


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    shard = Shard("x", (PlannedTensor("w", "F32", (3, 2)),))
    write_shard(tmp_path / "x", shard, lambda _: x.T)
    assert torch.equal(load_file(tmp_path / "x")["w"], x.T)


def test_bad_plans() -> None:
    for plan in ([], [PLAN[0], PLAN[0]]):
        with pytest.raises(StrucPruneError):
            plan_shards(plan, 100)


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    x = torch.randn(7, 3)
    shard = Shard("x", (PlannedTensor("w", "F32", (7, 3)),))
    whole = write_shard(tmp_path / "x", shard, lambda _: x)
    assert write_shard(tmp_path / "x", shard, lambda _: iter([x[:3], x[3:6], x[6:]])) == whole


@pytest.mark.parametrize("rows", [6, 8])
def test_pieces_must_make_up_the_tensor(tmp_path: Path, rows: int) -> None:
    shard = Shard("x", (PlannedTensor("w", "F32", (7, 3)),))
    with pytest.raises(StrucPruneError, match="was planned"):
        write_shard(
            tmp_path / "x", shard, lambda _: iter([torch.zeros(rows - 2, 3), torch.zeros(2, 3)])
        )
    assert not (tmp_path / "x").exists()
