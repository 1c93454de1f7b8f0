"""The simulation of workers on a graph, where the answer can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.wavefront.__main__ import smollm2
from benchmarks.wavefront.simulate import Storage, Work, simulate
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Capture, File
from strucprune_core.run.progress import Phase

AT_ONCE = Storage(bytes_per_second=1e12, latency_seconds=0.0)
LAYERS, CHUNKS, SECONDS = 6, 5, 10.0


def chain(**size: float) -> Work:
    """Layers that follow one another, 10 s each."""
    names = [Capture(layer).unit for layer in range(LAYERS)]
    passed = [File(name, "hidden.0-1.npy") for name in names]
    units = [Unit(names[0], Phase.CALIBRATING)]
    for layer in range(1, LAYERS):
        before = names[layer - 1 : layer]
        read = tuple(passed[layer - 1 : layer])
        units.append(Unit(names[layer], Phase.CALIBRATING, (*before,), read, read, (*before,)))
    return Work(units, dict.fromkeys(names, SECONDS), lambda file: size.get("bytes", 0.0), CHUNKS)


def test_a_chain_takes_one_worker_as_long_as_all_its_units() -> None:
    assert simulate(chain(), AT_ONCE, 1).seconds == pytest.approx(LAYERS * SECONDS)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_follow_share_a_chain(workers: int) -> None:
    waiting = simulate(chain(), AT_ONCE, workers, follow=False).seconds
    assert LAYERS * SECONDS <= waiting <= LAYERS * (SECONDS + 2.0)
    # The last of them begins so many chunks later; each look for work may be up to 2 s late.
    ideal = LAYERS * SECONDS / workers + (workers - 1) * SECONDS / CHUNKS
    together = simulate(chain(), AT_ONCE, workers).seconds
    assert ideal <= together + 1e-9 <= ideal + 2.0 * LAYERS / workers


def test_slow_storage_holds_up_those_who_follow() -> None:
    # A chunk takes 4 s to be stored and 4 s to be fetched, twice as long as a chunk's computing.
    slow = Storage(bytes_per_second=1.0, latency_seconds=0.0)
    fast, held_up = simulate(chain(), AT_ONCE, 2), simulate(chain(bytes=4.0 * CHUNKS), slow, 2)
    assert held_up.seconds > fast.seconds + 8.0


def test_a_helper_that_starts_too_late_is_no_help() -> None:
    assert simulate(chain(), AT_ONCE, 2, starting_seconds=100.0).seconds == pytest.approx(
        LAYERS * SECONDS
    )


def test_the_recorded_times_are_those_of_the_job() -> None:
    work = smollm2()
    assert {unit.name for unit in work.units} <= work.seconds.keys()
    alone, two = simulate(work, AT_ONCE, 1).seconds, simulate(work, AT_ONCE, 2).seconds
    assert alone / 2 < two < 0.6 * alone
