"""Temporary files take their space when they are made, leave nothing, and fail with a cure."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strucprune_core.errors import ScratchUnavailable
from strucprune_core.scratch.arrays import new_array, take_space, temporary_array
from strucprune_core.scratch.directories import scratch_directory, scratch_errors


def test_space_is_taken_at_once(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        take_space(file.fileno(), 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20


def test_a_temporary_array_has_no_name(tmp_path: Path) -> None:
    array = temporary_array(tmp_path, (2, 3))
    assert isinstance(array, np.memmap)
    assert (array.shape, array.dtype) == ((2, 3), np.float32)
    assert not array.any()
    assert list(tmp_path.iterdir()) == []


def test_a_new_array_is_a_numpy_file_with_its_space(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    array = new_array(path, (3, 70000), np.float64)
    assert path.stat().st_blocks * 512 >= array.nbytes
    array[:] = 7
    del array
    gc.collect()
    found = np.load(path)
    assert (found.shape, found.dtype) == ((3, 70000), np.float64)
    assert (found == 7).all()
    # The same bytes as numpy's own.
    np.save(tmp_path / "other.npy", found)
    assert path.read_bytes() == (tmp_path / "other.npy").read_bytes()


def test_what_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    attempts: list[Callable[[], object]] = [
        lambda: temporary_array(nowhere, (2, 2)),
        lambda: new_array(nowhere / "array.npy", (2, 2)),
        lambda: scratch_directory(nowhere).__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises(ScratchUnavailable, match="no such file or directory") as caught:
            attempt()
        error = caught.value
        assert (error.field, error.retryable) == ("scratch", True)
        assert "TMPDIR" in str(error.remedy)
        assert str(tmp_path) not in str(error)


def test_a_librarys_own_error_is_not_about_scratch() -> None:
    with pytest.raises(OSError, match="no tokenizer here"), scratch_errors("a file"):
        raise OSError("no tokenizer here")
