from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from strucprune_core.checkpoint import reader as reader_module
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TORCH_DTYPES, TensorReader
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.local import LocalStore


def stored(path: Path, tensors: dict[str, torch.Tensor]) -> TensorReader:
    (path / "config.json").write_text("{}")
    save_file(tensors, path / "model.safetensors")
    return TensorReader(open_checkpoint(LocalStore(path)))


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    expected = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.5, 7.0]]).to(TORCH_DTYPES[dtype])
    reader = stored(tmp_path, {"x": expected})
    assert reader.info("x").dtype == dtype
    kept = reader.tensor("x", dtype=None)
    assert kept.dtype == expected.dtype
    assert torch.equal(kept.float(), expected.float())
    assert torch.equal(reader.tensor("x"), expected.float())


@pytest.mark.parametrize("piece_bytes", [1, 10, 2**20])
def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(reader_module, "PIECE_BYTES", piece_bytes)
    x = torch.randn(7, 3, dtype=torch.bfloat16)
    reader = stored(tmp_path, {"x": x, "y": torch.zeros(5)})
    assert torch.equal(reader.tensor("x"), x.float())
    for start, stop in ((0, 7), (2, 5), (3, 3), (6, 7)):
        assert torch.equal(reader.rows("x", start, stop), x[start:stop].float())
        assert torch.equal(reader.rows("x", start, stop, dtype=None), x[start:stop])
    for start, stop in ((-1, 2), (0, 8), (5, 2)):
        with pytest.raises(InvalidCheckpoint, match="no rows"):
            reader.rows("x", start, stop)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    reader = stored(
        tmp_path, {"s": torch.tensor(3.5), "e": torch.zeros(0, 4), "f": torch.zeros(4, 0)}
    )
    assert reader.tensor("s") == 3.5
    assert reader.tensor("e").shape == (0, 4)
    assert reader.tensor("f", dtype=torch.float64).shape == (4, 0)
    assert len(reader.raw("s")) == 4


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    reader = stored(tmp_path, {"x": torch.zeros(1)})
    for read in (reader.info, reader.raw, reader.tensor):
        with pytest.raises(InvalidCheckpoint, match=r"model\.norm\.weight"):
            read("model.norm.weight")


def test_results_may_be_written_to(tmp_path: Path) -> None:
    reader = stored(tmp_path, {"x": torch.ones(3)})
    reader.tensor("x").zero_()
    assert torch.equal(reader.tensor("x"), torch.ones(3))
