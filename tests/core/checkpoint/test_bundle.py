from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from strucprune_core.checkpoint.bundle import (
    bundle_names,
    load_from_bundle,
    map_from_bundle,
    new_bundle,
    save_bundle,
)
from strucprune_core.checkpoint.writer import PlannedTensor
from strucprune_core.errors import InvalidCheckpoint, ScratchUnavailable

TENSORS = {
    "narrow": torch.arange(6, dtype=torch.float32).view(2, 3),
    "wide": torch.arange(20, dtype=torch.float64).view(4, 5),
    "names": torch.arange(3),
}
PLANNED = [
    PlannedTensor("narrow", "F32", (2, 3)),
    PlannedTensor("wide", "F64", (4, 5)),
    PlannedTensor("names", "I64", (3,)),
]


def test_a_mapped_file_is_the_same_as_a_written_one(tmp_path: Path) -> None:
    save_bundle(tmp_path / "written", TENSORS)
    with new_bundle(tmp_path / "mapped", PLANNED) as arrays:
        assert set(arrays) == set(TENSORS)
        for name, array in arrays.items():
            assert not array.any()
            array[-1:] = TENSORS[name].numpy()[-1:]  # In any order.
            array[:-1] = TENSORS[name].numpy()[:-1]
    assert (tmp_path / "mapped").read_bytes() == (tmp_path / "written").read_bytes()
    assert bundle_names(tmp_path / "mapped") == sorted(TENSORS)


def test_tensors_are_mapped_without_being_changed(tmp_path: Path) -> None:
    save_bundle(tmp_path / "file", TENSORS)
    for name, tensor in TENSORS.items():
        mapped = map_from_bundle(tmp_path / "file", name)
        assert torch.equal(torch.from_numpy(mapped), tensor)
        mapped[0] = 7
    assert torch.equal(
        load_from_bundle(tmp_path / "file", "wide", torch.device("cpu")), TENSORS["wide"]
    )


def test_an_empty_tensor_can_be_mapped(tmp_path: Path) -> None:
    save_bundle(tmp_path / "file", {"empty": torch.zeros(0, 5), "other": torch.ones(1)})
    assert map_from_bundle(tmp_path / "file", "empty").shape == (0, 5)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path / "file", TENSORS)
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(data[:-1])
    with pytest.raises(InvalidCheckpoint, match="truncated"):
        map_from_bundle(tmp_path / "file", "wide")


def test_half_a_file_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), new_bundle(tmp_path / "file", PLANNED):
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(ScratchUnavailable, match="no space left"),
        new_bundle(tmp_path / "file", PLANNED),
    ):
        pytest.fail("there was no room for this")
    assert list(tmp_path.iterdir()) == []
