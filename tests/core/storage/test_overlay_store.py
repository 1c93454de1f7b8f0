from __future__ import annotations

from pathlib import Path

import pytest

from strucprune_core.errors import ObjectNotFound, StorageError
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.store import ObjectInfo, ReadableStore

DATA = b"0123456789"
# A small object in memory and a large one on disk: all methods treat them alike.
KEYS = ["config.json", "model.safetensors"]


@pytest.fixture
def store(tmp_path: Path) -> OverlayStore:
    (tmp_path / "shard").write_bytes(DATA)
    return OverlayStore({"config.json": DATA}, {"model.safetensors": tmp_path / "shard"})


def test_it_is_a_store_to_read(store: OverlayStore) -> None:
    typed: ReadableStore = store
    assert typed.uri


@pytest.mark.parametrize("key", KEYS)
def test_stat_and_read(store: OverlayStore, key: str) -> None:
    assert store.stat(key) == ObjectInfo(key, 10)
    assert store.read(key) == DATA
    assert store.read(key, 3) == b"3456789"
    assert store.read(key, 3, 4) == b"3456"
    assert store.read(key, 10, 0) == store.read(key, 10) == b""
    changed = store.read(key)
    changed[0] = 0  # the caller's own copy
    assert store.read(key) == DATA


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("start", "length"), [(2, 9), (10, 1), (11, 1), (11, 0), (0, 2**60)])
def test_reading_past_the_end_fails_without_allocating(
    store: OverlayStore, key: str, start: int, length: int
) -> None:
    with pytest.raises(StorageError, match="ends before"):
        store.read(key, start, length)


@pytest.mark.parametrize("key", KEYS)
def test_reading_to_the_end_from_behind_it_fails(store: OverlayStore, key: str) -> None:
    with pytest.raises(StorageError):
        store.read(key, 11)


@pytest.mark.parametrize("key", ["x", "", "config.json/x", "../shard", "/etc/passwd", "a\0b"])
def test_absent_objects(store: OverlayStore, key: str) -> None:
    assert store.stat(key) is None
    assert store.local_path(key) is None
    with pytest.raises(ObjectNotFound):
        store.read(key)


def test_a_file_that_is_gone_is_absent(store: OverlayStore) -> None:
    store.paths["model.safetensors"].unlink()
    assert store.stat("model.safetensors") is None
    assert [info.key for info in store.list()] == ["config.json"]
    with pytest.raises(ObjectNotFound):
        store.read("model.safetensors")


def test_list_is_in_key_order(store: OverlayStore) -> None:
    assert list(store.list()) == [ObjectInfo(key, 10) for key in KEYS]
    assert [info.key for info in store.list("model")] == ["model.safetensors"]
    assert list(store.list("nothing")) == []


def test_only_files_have_a_path(store: OverlayStore) -> None:
    assert store.local_path("config.json") is None
    path = store.local_path("model.safetensors")
    assert path is not None
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("key", KEYS)
def test_download(store: OverlayStore, tmp_path: Path, key: str) -> None:
    ticks: list[int] = []
    store.download(key, tmp_path / "copy", ticks.append)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert ticks == [10]
    with pytest.raises(ObjectNotFound):
        store.download("nothing", tmp_path / "none")
    assert not (tmp_path / "none").exists()
