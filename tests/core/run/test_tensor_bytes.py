from __future__ import annotations

import numpy as np
import pytest
import torch

from strucprune_core.errors import OutOfMemory
from strucprune_core.run.tensor_bytes import TensorBytes


def test_counts_what_lives_and_no_view() -> None:
    with torch.inference_mode(), TensorBytes() as counted:
        matrix = torch.zeros(100, 50)
        turned, part = matrix.T, matrix[3:5]
        assert counted.live_bytes == 100 * 50 * 4
        del matrix, turned
        assert counted.live_bytes == 100 * 50 * 4  # `part` keeps it.
        del part
        assert counted.live_bytes == 0
        assert counted.take_peak() == 100 * 50 * 4
        assert counted.take_peak() == 0


def test_peak_is_of_the_moment() -> None:
    with torch.inference_mode(), TensorBytes() as counted:
        left = torch.zeros(64, 64)
        product = left @ left
        del left
        other = product.double()
        del product
    assert counted.take_peak() == 3 * 64 * 64 * 4
    assert counted.live_bytes == other.nbytes


def test_memory_of_others_is_not_counted() -> None:
    with torch.inference_mode(), TensorBytes() as counted:
        wrapped = torch.from_numpy(np.zeros((10, 10), dtype=np.float32))
        assert wrapped[2:5].view(-1).shape == (30,)
        assert counted.take_peak() == 0
        wrapped.add_(1)
        assert counted.take_peak() == 0


def test_the_way_back_counts_too() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    with TensorBytes() as counted:
        weight.exp().sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert counted.live_bytes >= 4000
        assert counted.take_peak() >= 8000


def test_more_than_the_limit_is_an_error() -> None:
    with TensorBytes(limit_bytes=1000), pytest.raises(OutOfMemory, match="the plan allows 1000"):
        torch.zeros(251)
