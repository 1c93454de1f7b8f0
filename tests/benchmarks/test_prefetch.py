from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.prefetch import FarStore, Link


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, on a clock that stands still."""
    waits: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_bytes_pass_one_after_another_and_delays_overlap(slept: list[float]) -> None:
    link = Link(latency_seconds=0.5, bytes_per_second=100.0)
    for size in (100, 100, 0):
        link.carry(size)
    assert slept == [1.5, 2.5, 2.5]
    assert link.bytes == 200


def test_a_far_store_is_a_directory_behind_the_link(tmp_path: Path, slept: list[float]) -> None:
    link = Link(bytes_per_second=10.0)
    store = FarStore(tmp_path, link)
    store.put("a", b"12345")
    assert store.read("a", 1, 2) == b"23"
    store.upload("b", tmp_path / "a")
    assert store.local_path("b") is None
    assert link.bytes == 5 + 2 + 5
    assert slept == pytest.approx([0.5, 0.7, 1.2])
