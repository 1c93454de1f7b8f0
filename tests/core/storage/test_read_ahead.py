from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strucprune_core.errors import ObjectNotFound, StorageError, StorageUnavailable
from strucprune_core.storage import read_ahead
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.read_ahead import ReadAheadStore
from strucprune_core.storage.store import ReadableStore

BLOCK = 100
DATA = bytes(i % 251 for i in range(2345))


@dataclass(frozen=True)
class Far(LocalStore):
    """A directory that counts reads, and fails once for each item in `failures`."""

    asked: Counter[int] = field(default_factory=Counter)
    failures: list[None] = field(default_factory=list)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        if self.failures:
            self.failures.pop()
            raise StorageUnavailable("down")
        self.asked[start] += 1
        return LocalStore.read(self, key, start, length)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/file").write_bytes(DATA)
    (tmp_path / "far/empty").write_bytes(b"")
    return Far(tmp_path / "far")


@pytest.fixture
def near(far: Far, tmp_path: Path) -> Iterator[ReadAheadStore]:
    store = ReadAheadStore(far, tmp_path, 10**6, BLOCK)
    yield store
    store.close()
    assert not list(tmp_path.glob("blocks-*"))


@settings(max_examples=60, deadline=None)
@given(reads=st.lists(st.tuples(st.integers(0, 2345), st.integers(0, 700)), max_size=12))
def test_it_reads_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("far")
    (root / "file").write_bytes(DATA)
    store = ReadAheadStore(LocalStore(root), tmp_path_factory.mktemp("near"), 5 * BLOCK, BLOCK)
    for start, length in reads:
        length = min(length, len(DATA) - start)
        assert store.read("file", start, length) == DATA[start : start + length]
    assert store.read("file") == DATA
    store.close()


def test_a_block_is_asked_for_once_however_often_it_is_read(far: Far, near: ReadAheadStore) -> None:
    for _ in range(3):
        assert near.read("file") == DATA
    assert set(far.asked) == set(range(0, len(DATA), BLOCK))
    assert set(far.asked.values()) == {1}


def test_the_next_blocks_come_unasked(far: Far, near: ReadAheadStore) -> None:
    near.read("file", 0, 10)
    near.close()
    assert BLOCK in far.asked or read_ahead.AHEAD_BLOCKS == 0
    assert max(far.asked) <= read_ahead.AHEAD_BLOCKS * BLOCK


def test_old_blocks_make_room(far: Far, tmp_path: Path) -> None:
    store = ReadAheadStore(far, tmp_path, 3 * BLOCK, BLOCK)
    assert store.read("file") == DATA
    (folder,) = tmp_path.glob("blocks-*")
    most = 2 * (read_ahead.AHEAD_BLOCKS + read_ahead.THREADS)
    assert 0 < len(list(folder.iterdir())) <= most
    assert store.read("file") == DATA
    store.close()


def test_a_failure_is_raised_and_the_block_asked_for_again(far: Far, near: ReadAheadStore) -> None:
    far.failures.append(None)
    with pytest.raises(StorageUnavailable, match="down"):
        near.read("file")
    assert near.read("file") == DATA


def test_what_is_not_there(near: ReadAheadStore) -> None:
    with pytest.raises(ObjectNotFound):
        near.read("nothing")
    with pytest.raises(StorageError):
        near.read("file", 2000, 400)
    assert near.read("empty") == b""
    assert near.read("file", 2345, 0) == b""


def test_all_else_is_the_store_behind(far: Far, near: ReadAheadStore, tmp_path: Path) -> None:
    typed: ReadableStore = near
    assert typed.uri == far.uri
    assert typed.stat("file") == far.stat("file")
    assert list(typed.list("f")) == list(far.list("f"))
    assert typed.local_path("file") == far.local_path("file")
    typed.download("file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_what_is_expected_comes_unasked(far: Far, near: ReadAheadStore) -> None:
    near.expect([("file", 1250, 120), ("file", 2000, 1)])
    while len(far.asked) < 3:
        time.sleep(0.001)
    assert near.read("file", 1250, 100) == DATA[1250:1350]
    assert near.read("file", 2000, 1) == DATA[2000:2001]
    assert {1200, 1300, 2000} <= set(far.asked)
    assert set(far.asked.values()) == {1}


def test_what_is_expected_waits_for_what_is_wanted(far: Far, tmp_path: Path) -> None:
    """No more of it is under way than there are threads."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    class Slow(Far):
        def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
            begun.release()
            assert gate.wait(60)
            return Far.read(self, key, start, length)

    slow = Slow(far.root)
    store = ReadAheadStore(slow, tmp_path, 10**6, BLOCK)
    store.expect([("file", 0, 2000)])
    for _ in range(read_ahead.THREADS):
        assert begun.acquire(timeout=60)
    store.expect([])  # What is not under way is given up.
    gate.set()
    assert store.read("file", 2300, 10) == DATA[2300:2310]
    store.close()
    assert set(slow.asked) == {*range(0, read_ahead.THREADS * BLOCK, BLOCK), 2300}


def test_expecting_what_is_not_there_or_fails_is_no_error(far: Far, near: ReadAheadStore) -> None:
    near.expect([("nothing", 0, 100)])
    far.failures.append(None)
    near.expect([("file", 0, 10)])
    with pytest.raises(StorageUnavailable, match="down"):
        near.read("file", 0, 10)
    assert near.read("file", 0, 10) == DATA[:10]


def test_threads_do_not_remove_what_others_read(far: Far, tmp_path: Path) -> None:
    """With room for a few blocks, several readers of the whole file push out each other's."""
    store = ReadAheadStore(far, tmp_path, BLOCK // 4, BLOCK // 4)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: bytes(store.read("file")), range(64)))
    assert set(read) == {DATA}
    store.close()
