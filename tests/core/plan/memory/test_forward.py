"""What a layer is planned to take, against the bytes of tensors that live while it runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from strucprune_core.models.structures import SiteKind
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.forward import Batch, forward_bytes, micro_batch
from strucprune_core.run.tensor_bytes import TensorBytes
from tests.core.plan.shapes import RAW, shape, stream


@pytest.mark.parametrize("record", [(), ("ffn",), ("ffn", "attention")], ids=str)
@pytest.mark.parametrize("rows", [None, 64, 200])
@pytest.mark.parametrize("batch", [Batch(4, 128), Batch(1, 300)], ids=["four", "one"])
@pytest.mark.parametrize("name", RAW)
def test_a_layer_takes_what_was_planned(
    name: str, rows: int | None, batch: Batch, record: tuple[SiteKind, ...]
) -> None:
    planned, peak = planned_and_counted(name, Tiles(batch.tokens, rows), batch, record)
    assert planned == pytest.approx(peak, rel=0.07)


@pytest.mark.parametrize("record", [(), ("ffn", "attention")], ids=str)
@pytest.mark.parametrize("rows", [None, 200])
@pytest.mark.parametrize("name", RAW)
def test_in_bfloat16_it_takes_no_more(
    name: str, rows: int | None, record: tuple[SiteKind, ...]
) -> None:
    batch = Batch(4, 128)
    tiles = Tiles(batch.tokens, rows, operand_bytes=2)
    planned, peak = planned_and_counted(name, tiles, batch, record)
    assert 0.75 * planned < peak <= planned * 1.01  # Vectors that are read when used.
    wide = forward_bytes(shape(name), 0, batch, Tiles(batch.tokens, rows), record=record)
    assert rows is not None or planned < wide


def planned_and_counted(
    name: str, tiles: Tiles, batch: Batch, record: tuple[SiteKind, ...]
) -> tuple[int, int]:
    config = shape(name)
    dtype = torch.bfloat16 if tiles.operand_bytes == 2 else torch.float32
    model = replace(stream(config, tiles), dtype=dtype)
    size = (batch.sequences, batch.length, config.hidden_size)
    hidden = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    model.run_layer(0, model.layer(0), hidden)  # Rotary tables are kept from one run to the next.
    with torch.inference_mode(), TensorBytes() as counted:
        model.run_layer(0, model.layer(0), hidden, record=record)
        peak = counted.take_peak()
    return forward_bytes(config, 0, batch, tiles, record=record), peak


def test_a_micro_batch_is_whole_sequences() -> None:
    tiles = Tiles(micro_batch_tokens=100)
    assert micro_batch(tiles, 9, 30) == Batch(3, 30)
    assert micro_batch(tiles, 2, 30) == Batch(2, 30)
    assert micro_batch(tiles, 9, 300) == Batch(1, 300)
    assert Batch(3, 30).tokens == 90
