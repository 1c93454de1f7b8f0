"""Measuring a device's rates: what is timed, what is left out, and how long all of it takes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from strucprune_core.evaluation import device_rates
from strucprune_core.evaluation.device_rates import SIZES, clock_of, measured_rates, product_rate
from strucprune_core.plan.rates import DeviceRates

CPU = torch.device("cpu")


class Clock:
    """A clock on which a product of a size takes so many seconds."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        return self.now

    def multiply(self, left: torch.Tensor, right: torch.Tensor, out: object = None) -> torch.Tensor:
        self.now += self._seconds(len(left))
        return left


def test_rates_of_this_machine() -> None:
    before = torch.random.get_rng_state()
    rates = measured_rates(CPU, torch.get_num_threads())
    assert (rates.kind, rates.threads) == ("cpu", torch.get_num_threads())
    assert rates.device
    assert set(rates.products) == {"float32", "float64"}
    for measured in rates.products.values():
        assert [*measured] == [*SIZES[: len(measured)]]
        assert all(rate > 1e7 for rate in measured.values())  # Any processor of this century.
    # What random numbers a caller gets does not depend on it.
    assert torch.equal(before, torch.random.get_rng_state())
    # Another process may read it, or a service of another release.
    text = json.dumps({**rates.model_dump(mode="json"), "new": 1})
    assert DeviceRates.model_validate_json(text) == rates
    assert measured_rates(CPU, torch.get_num_threads()) is rates


def test_a_rate_is_the_median_of_some_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([9.0, 9.0, 1.0, 2.0, 30.0])  # The first product makes the result, one warms up.
    clock = Clock(lambda size: next(taken))
    monkeypatch.setattr(torch, "mm", clock.multiply)
    assert product_rate(CPU, "float32", 100, clock) == pytest.approx(2 * 100**3 / 2.0)


@pytest.mark.parametrize(("rate", "largest"), [(1e9, 256), (1e11, 1024), (1e14, 8192)])
def test_sizes_that_take_too_long_are_left_out(
    monkeypatch: pytest.MonkeyPatch, rate: float, largest: int
) -> None:
    clock = Clock(lambda size: 2 * size**3 / rate)
    monkeypatch.setattr(torch, "mm", clock.multiply)
    monkeypatch.setattr(torch, "full", lambda size, *_, **__: torch.zeros(size[0], 1))
    found = device_rates._products(CPU, "float32", clock)
    assert max(found) == largest
    assert all(each == pytest.approx(rate) for each in found.values())
    assert clock.now < 2.0


def test_tf32_is_a_mode_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    multiply = torch.mm

    def watched(left: torch.Tensor, right: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, left.dtype))
        return multiply(left, right, **more)

    monkeypatch.setattr(torch, "mm", watched)
    before = torch.backends.cuda.matmul.allow_tf32
    for precision in ("float32", "tf32", "bfloat16"):
        product_rate(CPU, precision, 8, Clock(lambda size: 1.0))
    assert {*seen} == {(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)}
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_time_of_one_thread_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    assert clock_of(CPU, 1) is time.thread_time
    assert clock_of(CPU, 2) is time.perf_counter
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert clock_of(torch.device("cuda:1"), 1)() <= time.perf_counter()
    assert waited == [torch.device("cuda:1")]
