"""Chunks that a layer hands on: whole micro-batches, a limited number of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.models.forward import micro_batches
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.chunks import MOST_CHUNKS, chunks
from strucprune_core.plan.sites import holdout_sequences
from strucprune_core.spec import CalibrationSpec


def calibration(samples: int, length: int) -> CalibrationSpec:
    return CalibrationSpec(uri="/text", samples=samples, sequence_length=length)


@given(
    samples=st.integers(2, 300), length=st.sampled_from([64, 512]), tokens=st.integers(1, 50_000)
)
def test_chunks_change_no_micro_batch(samples: int, length: int, tokens: int) -> None:
    train = samples - holdout_sequences(samples)
    found = chunks(calibration(samples, length), Tiles(micro_batch_tokens=tokens))
    assert [sequence for chunk in found for sequence in chunk] == [*range(samples)]
    assert sum(chunk.start < train for chunk in found) <= MOST_CHUNKS
    in_chunks = [
        (chunk.start + rows.start, chunk.start + rows.stop)
        for chunk in found
        for rows in micro_batches(len(chunk), length, tokens)
    ]
    parts = ((0, train), (train, samples))
    assert in_chunks == [
        (start + rows.start, start + rows.stop)
        for start, stop in parts
        for rows in micro_batches(stop - start, length, tokens)
    ]


@pytest.mark.parametrize(
    ("samples", "tokens", "count"),
    [(32, 4096, 4 + 1), (128, 4096, 14 + 2), (512, 4096, 14 + 2), (128, 10**6, 1 + 1)],
)
def test_how_many_there_are(samples: int, tokens: int, count: int) -> None:
    found = chunks(calibration(samples, 512), Tiles(micro_batch_tokens=tokens))
    assert len(found) == count


def test_experts_that_are_read_one_at_a_time_are_read_once() -> None:
    tiles = Tiles(micro_batch_tokens=512, expert_by_expert=True)
    train = 64 - holdout_sequences(64)
    assert chunks(calibration(64, 512), tiles) == [range(train), range(train, 64)]
