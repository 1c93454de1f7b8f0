"""Q8_0 against the reference of the gguf package, to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from strucprune_core.errors import NumericalFailure
from strucprune_core.export import q8_0

Q8 = GGMLQuantizationType.Q8_0


def reference(values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(quantize(values.float().numpy(), Q8))


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([32, 64, 96])),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_bytes_are_those_of_the_reference(values: np.typing.NDArray[np.float32]) -> None:
    given_values = torch.from_numpy(values)
    with np.errstate(all="ignore"):  # The reference divides by scales that are zero.
        expected = reference(given_values)
    assert torch.equal(q8_0.quantise(given_values), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pieces_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(70, 96).to(dtype)
    whole = q8_0.quantise(values)
    assert torch.equal(whole, reference(values))
    read = torch.from_numpy(dequantize(whole.numpy(), Q8))
    assert torch.equal(q8_0.dequantise(whole), read)
    monkeypatch.setattr(q8_0, "_CHUNK_ELEMENTS", 3 * 96)
    assert torch.equal(q8_0.quantise(values), whole)
    assert torch.equal(q8_0.dequantise(whole), read)


def test_halves_are_rounded_away_from_zero() -> None:
    block = torch.zeros(1, 32)
    block[0, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -2.5])  # The scale is 1.
    stored = q8_0.quantise(block)[0, 2:8].view(torch.int8)
    assert stored.tolist() == [127, 1, 2, 3, -1, -3]
    almost = torch.tensor([0.49999997, -0.49999997])
    assert q8_0._rounded(almost).abs().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_a_block_of_nothing(value: float) -> None:
    stored = q8_0.quantise(torch.full((2, 32), value))
    assert not stored.any()
    assert not q8_0.dequantise(stored).any()


def test_a_scale_that_float16_cannot_hold() -> None:
    with pytest.raises(NumericalFailure, match="scale"):
        q8_0.quantise(torch.full((1, 32), 1e7))
