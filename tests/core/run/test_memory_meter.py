from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from strucprune_core.run import memory_meter as memory
from strucprune_core.run.memory_meter import SAMPLE_SECONDS, MemoryMeter, anonymous_bytes

BLOCK_BYTES = 100_000_000
# What the rest of the process may grow or shrink by meanwhile.
SLACK_BYTES = 20_000_000


@pytest.fixture
def meter() -> MemoryMeter:
    return MemoryMeter(torch.device("cpu"))


def allocate() -> mmap.mmap:
    """A block of anonymous memory, every page touched.

    Asked of the system and not of malloc, which may keep what is freed.
    """
    block = mmap.mmap(-1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, BLOCK_BYTES, mmap.PAGESIZE):
        block[page] = 1
    return block


def sample() -> None:
    """Give the meter's thread time for several samples."""
    time.sleep(10 * SAMPLE_SECONDS)


def test_an_allocation_shows_in_the_peak_even_when_it_is_gone(meter: MemoryMeter) -> None:
    with meter.running():
        meter.take_host_peak()
        before = anonymous_bytes()
        block = allocate()
        sample()
        block.close()
        grown = meter.take_host_peak() - before
        assert grown == pytest.approx(BLOCK_BYTES, abs=SLACK_BYTES)
        assert meter.take_host_peak() - before < SLACK_BYTES  # each call begins anew


def test_a_sample_belongs_to_the_call_during_which_it_was_read(
    meter: MemoryMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    high, low = 100, 1
    reading, first = threading.Event(), iter([high])

    def slow_reading() -> int:
        if threading.current_thread() is threading.main_thread():
            return low
        value = next(first, low)
        reading.set()
        time.sleep(0.1)  # meanwhile the main thread asks
        return value

    monkeypatch.setattr(memory, "anonymous_bytes", slow_reading)
    with meter.running():
        assert reading.wait(10)
        assert meter.take_host_peak() == high
        time.sleep(0.2)
        assert meter.take_host_peak() == low


def test_pages_of_a_file_do_not_count(meter: MemoryMeter, tmp_path: Path) -> None:
    with meter.running():
        meter.take_host_peak()
        before = anonymous_bytes()
        path = tmp_path / "scratch.npy"
        written = np.lib.format.open_memmap(path, "w+", np.uint8, (BLOCK_BYTES,))
        written[:] = 1
        read = np.load(path, mmap_mode="r")
        assert read.sum() == BLOCK_BYTES  # every page is resident
        sample()
        assert meter.take_host_peak() - before < SLACK_BYTES


def test_the_host_has_no_device_memory(meter: MemoryMeter) -> None:
    assert meter.take_device_peak() is None
