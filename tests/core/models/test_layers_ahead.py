"""Layers that are read ahead: when, how many at a time, and what becomes of errors and threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strucprune_core.errors import Stopped, StorageUnavailable
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.layers_ahead import Abandoned, Alive, one_ahead
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.forward import Batch, pass_bytes
from strucprune_core.run.tensor_bytes import TensorBytes
from tests.core.models.reference import random_llama, random_tokens, stream_of

AHEAD = Tiles(micro_batch_tokens=64, layers_ahead=1)
PATIENCE_SECONDS = 60
LAYERS = 4


class Watched:
    """A source that tells each tensor before it is read."""

    def __init__(self, source: Any, before: Callable[[str], None]) -> None:
        self._source, self._before = source, before

    def tensor(self, name: str, **options: Any) -> Tensor:
        self._before(name)
        result: Tensor = self._source.tensor(name, **options)
        return result

    def rows(self, name: str, start: int, stop: int, **options: Any) -> Tensor:
        self._before(name)
        result: Tensor = self._source.rows(name, start, stop, **options)
        return result


@pytest.fixture
def stream(tmp_path: Path) -> ModelStream:
    model = random_llama(num_hidden_layers=LAYERS).bfloat16()
    return replace(stream_of(model, tmp_path / "model"), tiles=AHEAD)


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if ".layers." in name else None


def watched(stream: ModelStream, before: Callable[[int], None]) -> ModelStream:
    """The stream, telling the layer of each tensor."""

    def look(name: str) -> None:
        layer = layer_of(name)
        if layer is not None:
            before(layer)

    return replace(stream, source=Watched(stream.source, look))


def readers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("layers-ahead")]


@pytest.mark.parametrize("order", [range(LAYERS), [2], [], [3, 1, 0, 2]], ids=str)
def test_layers_are_the_same(stream: ModelStream, order: Any) -> None:
    given = [(layer, dict(weights)) for layer, weights in stream.layers(order)]
    assert [layer for layer, _ in given] == [*order]
    for layer, weights in given:
        wanted = stream.layer(layer)
        assert list(weights) == list(wanted)
        assert all(torch.equal(weights[role], wanted[role]) for role in wanted)
    assert readers() == []


def test_a_pass_gives_the_same_bytes(stream: ModelStream, tmp_path: Path) -> None:
    tokens = random_tokens(5, 40)
    beside = final_hidden(stream, tokens, tmp_path, lambda: None)
    alone = replace(stream, tiles=replace(AHEAD, layers_ahead=0))
    assert np.array_equal(beside, final_hidden(alone, tokens, tmp_path, lambda: None))


def test_the_next_layer_is_read_before_this_one_is_done(stream: ModelStream) -> None:
    began = [threading.Event() for _ in range(LAYERS)]
    for layer, _ in watched(stream, lambda layer: began[layer].set()).layers(range(LAYERS)):
        if layer + 1 < LAYERS:
            assert began[layer + 1].wait(PATIENCE_SECONDS)


def test_at_most_two_layers_live(stream: ModelStream) -> None:
    """The one in use, and the one ahead: none is read before the one before the last is dropped."""
    living: list[weakref.ref[LayerWeights]] = []
    most = 0
    for layer, weights in stream.layers(range(LAYERS)):
        living.append(weakref.ref(weights))
        most = max(most, sum(each() is not None for each in living))
        assert layer == len(living) - 1
        del weights
    assert most == 1


@pytest.mark.parametrize("ahead", [0, 1])
def test_memory_is_that_of_the_plan(stream: ModelStream, ahead: int) -> None:
    """Counted in both threads, with the next layer read to its end before this one is used."""
    config, batch, tiles = stream.config, Batch(1, 8), replace(AHEAD, layers_ahead=ahead)
    running = replace(stream, tiles=tiles)
    hidden = np.zeros((batch.sequences, batch.length, config.hidden_size), dtype=np.float32)
    running.run_layer(0, running.layer(0), hidden)  # Rotary tables are kept from now on.
    have = [threading.Event() for _ in range(LAYERS)]

    def read(layer: int, alive: Alive) -> dict[str, Tensor]:
        weights = running.whole_layer(layer, alive)
        have[layer].set()
        return weights

    with torch.inference_mode(), TensorBytes() as counted:
        for layer, weights in running.in_turn(range(LAYERS), read):
            if ahead and layer + 1 < LAYERS:
                assert have[layer + 1].wait(PATIENCE_SECONDS)
            running.run_layer(layer, weights, hidden)
            del weights
        peak = counted.take_peak()
        assert counted.live_bytes == 0
    assert peak == pytest.approx(pass_bytes(config, batch, tiles), rel=0.07)


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_are_those_of_the_caller_s_mode(stream: ModelStream, *, inference: bool) -> None:
    with torch.inference_mode(inference):
        for _, weights in stream.layers(range(2)):
            assert {tensor.is_inference() for tensor in weights.values()} == {inference}


def test_an_error_is_raised_when_it_is_the_layer_s_turn(stream: ModelStream) -> None:
    failed = threading.Event()
    error = StorageUnavailable("down")

    def fail(layer: int) -> None:
        if layer == 2:
            failed.set()
            raise error

    seen = []

    def run() -> None:
        for layer, _ in watched(stream, fail).layers(range(LAYERS)):
            if layer == 1:
                assert failed.wait(PATIENCE_SECONDS)
            seen.append(layer)

    with pytest.raises(StorageUnavailable) as caught:
        run()
    assert caught.value is error
    assert seen == [0, 1]
    assert readers() == []


@pytest.mark.parametrize("kind", [Stopped, KeyboardInterrupt, ValueError])
def test_whoever_leaves_ends_the_thread(kind: type[BaseException]) -> None:
    began = threading.Event()

    def read(number: int, alive: Alive) -> int:
        while number == 1:  # Only `alive` ends this.
            alive()
            began.set()
            time.sleep(0.001)
        return number

    def leave() -> None:
        for _ in one_ahead(range(3), read):
            assert began.wait(PATIENCE_SECONDS)
            raise kind("enough")

    with pytest.raises(kind, match="enough") as caught:
        leave()
    assert readers() == []
    assert caught.value.__context__ is None


def test_a_layer_can_be_abandoned_before_each_tensor(stream: ModelStream) -> None:
    names: list[str] = []
    calls = iter(range(3))

    def alive() -> None:
        if next(calls) == 2:
            raise Abandoned

    with pytest.raises(Abandoned):
        replace(stream, source=Watched(stream.source, names.append)).whole_layer(0, alive)
    assert len(names) == 2


def test_a_loop_that_is_left_closes_its_pass(stream: ModelStream, tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped) as caught:
        final_hidden(stream, random_tokens(1, 8), tmp_path, stop)
    assert readers() == []
    assert caught.value.__context__ is None


def test_panels_are_read_when_they_are_used(stream: ModelStream) -> None:
    names: list[str] = []
    pieces = replace(stream, tiles=replace(AHEAD, weight_rows=16))
    counted = replace(pieces, source=Watched(stream.source, names.append))
    assert [layer for layer, _ in counted.layers(range(LAYERS))] == [*range(LAYERS)]
    assert names == []


def test_at_most_one_is_ahead() -> None:
    """What is not asked for cannot be read, and one more number than those in use is asked for."""
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(4):
            asked.append(number)
            yield number

    for number, made in one_ahead(numbers(), lambda number, alive: -number):
        assert made == -number
        assert asked == [*range(min(4, number + 2))]
    assert asked == [0, 1, 2, 3]
