from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from strucprune_core.errors import (
    AccessDenied,
    ObjectNotFound,
    Stopped,
    StorageError,
    StorageUnavailable,
)
from strucprune_core.storage import local
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import ObjectInfo, Store

BAD_KEYS = [
    "",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a//b",
    "a/",
    ".",
    "a/./b",
    "a\\b",
    "a\nb",
    "a\0b",
    "x" * 1025,
    "\udc80",
]


@pytest.fixture(params=[True, False], ids=["unnamed", "named"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalStore:
    """Whether unfinished files have a name depends on the file system."""
    if not request.param:
        monkeypatch.setattr(local, "_HAS_PROC", False)
    return LocalStore(tmp_path / "root")


def test_it_is_a_store(store: LocalStore) -> None:
    typed: Store = store
    assert typed.uri == str(store.root)


def test_put_read_stat_delete(store: LocalStore) -> None:
    store.put("a/b.bin", b"0123456789")
    assert store.stat("a/b.bin") == ObjectInfo("a/b.bin", 10)
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read("a/b.bin", 3) == b"3456789"
    assert store.read("a/b.bin", 3, 4) == b"3456"
    assert store.read("a/b.bin", 10, 0) == b""
    store.put("a/b.bin", b"new")
    assert store.read("a/b.bin") == b"new"
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    store.delete("never/was")
    assert store.stat("a/b.bin") is None


def test_absent_objects(store: LocalStore, tmp_path: Path) -> None:
    assert store.stat("x") is None
    assert store.local_path("x") is None
    assert list(store.list()) == []
    with pytest.raises(ObjectNotFound):
        store.read("x")
    with pytest.raises(ObjectNotFound):
        store.download("x", tmp_path / "copy")
    store.put("file", b"")
    assert store.stat("file/below") is None
    with pytest.raises(ObjectNotFound):
        store.read("file/below")


def test_a_directory_is_no_object(store: LocalStore) -> None:
    store.put("folder/file", b"x")
    assert store.stat("folder") is None
    with pytest.raises(ObjectNotFound):
        store.read("folder")
    with pytest.raises(StorageError, match="directory"):
        store.put("folder", b"x")


def test_nothing_can_be_stored_below_a_file(store: LocalStore) -> None:
    store.put("file", b"")
    for below in (store.child("file"), store.child("file/deeper")):
        for verb in (below.check_writable, lambda below=below: below.put("x", b"")):
            with pytest.raises(StorageError, match="file is a file, not a directory") as caught:
                verb()
            assert not caught.value.retryable
            assert "Choose another" in str(caught.value)


def test_a_check_for_writing_leaves_no_trace(tmp_path: Path) -> None:
    LocalStore(tmp_path / "not/yet").check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_written() -> None:
    # Not even root can make files there.
    with pytest.raises(AccessDenied, match="nothing can be written under /proc/new") as caught:
        LocalStore(Path("/proc/new")).check_writable()
    assert "Choose a directory" in str(caught.value)


def test_a_full_disk_can_be_mended(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailable, match="no space left on device") as caught:
        store.put("x", b"1")
    assert caught.value.retryable
    assert "Free space" in str(caught.value)
    monkeypatch.undo()
    assert list(store.root.iterdir()) == []


def test_reading_past_the_end_fails_without_allocating(store: LocalStore) -> None:
    store.put("x", b"0123")
    with pytest.raises(StorageError, match="ends at byte 4"):
        store.read("x", 2, 3)
    with pytest.raises(StorageError):
        store.read("x", 0, 2**60)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_by_every_verb(store: LocalStore, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for verb in (
        lambda: store.stat(key),
        lambda: store.read(key),
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.upload(key, source),
        lambda: store.download(key, tmp_path / "target"),
        lambda: store.delete(key),
        lambda: store.child(key),
        lambda: store.local_path(key),
    ):
        with pytest.raises(AccessDenied):
            verb()


@pytest.mark.parametrize("prefix", ["../", "/etc", "a/../", "..", "a//b", "\\"])
def test_bad_prefixes_are_refused(store: LocalStore, prefix: str) -> None:
    if prefix == "..":  # a name may begin with dots; nothing above the root is listed
        assert list(store.list(prefix)) == []
        return
    with pytest.raises(AccessDenied):
        list(store.list(prefix))


def test_links_out_of_the_root_are_refused(store: LocalStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"s3cr3t")
    store.put("inside", b"fine")
    (store.root / "file").symlink_to(secret / "key")
    (store.root / "folder").symlink_to(secret)
    (store.root / "within").symlink_to(store.root / "inside")
    for key in ("file", "folder/key"):
        with pytest.raises(AccessDenied, match="leads out"):
            store.read(key)
        with pytest.raises(AccessDenied):
            store.put(key, b"x")
    with pytest.raises(AccessDenied):
        store.child("folder")
    with pytest.raises(AccessDenied):
        list(store.list("folder/"))
    assert store.read("within") == b"fine"
    assert (secret / "key").read_bytes() == b"s3cr3t"
    assert "folder/key" not in [info.key for info in store.list()]


def test_a_pipe_does_not_block(store: LocalStore) -> None:
    store.put("x", b"")
    os.mkfifo(store.root / "pipe")
    with pytest.raises(ObjectNotFound):
        store.read("pipe")
    assert [info.key for info in store.list()] == ["x"]


def test_list_is_in_key_order_and_hides_unfinished_writes(store: LocalStore) -> None:
    keys = ["a.txt", "a/b", "a/c/d", "a0", "b", "ab/c"]
    for key in keys:
        store.put(key, key.encode())
    (store.root / "a" / ".strucprune-tmp-1").write_bytes(b"half")
    assert [info.key for info in store.list()] == sorted(keys)
    assert [info.key for info in store.list("a/")] == ["a/b", "a/c/d"]
    assert [info.key for info in store.list("a")] == sorted(k for k in keys if k[0] == "a")
    assert [info.key for info in store.list("a/c")] == ["a/c/d"]
    assert list(store.list("nothing/")) == []
    with pytest.raises(AccessDenied, match="unfinished"):
        store.read("a/.strucprune-tmp-1")


def test_child_is_rooted_below(store: LocalStore) -> None:
    child = store.child("jobs/1")
    child.put("x", b"1")
    assert store.read("jobs/1/x") == b"1"
    assert [info.key for info in child.list()] == ["x"]


def test_upload_and_download(store: LocalStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3 * 2**20))
    store.upload("big", source)
    store.download("big", target)
    assert target.read_bytes() == source.read_bytes()
    assert store.local_path("big") == store.root / "big"


def test_a_transfer_tells_its_progress_and_can_be_abandoned(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_COPY_BYTES", 1000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(2500))
    seen: list[int] = []
    store.upload("big", source, seen.append)
    store.download("big", target, seen.append)
    assert seen == [1000, 2000, 2500] * 2

    def stop(done: int) -> None:
        if done > 1000:
            raise Stopped("asked to")

    target.unlink()
    abandoned: list[Callable[[], None]] = [
        lambda: store.upload("other", source, stop),
        lambda: store.download("big", target, stop),
    ]
    for transfer in abandoned:
        with pytest.raises(Stopped):
            transfer()
    assert [path.name for path in store.root.iterdir()] == ["big"]
    assert list(tmp_path.glob("*target*")) == []
    assert list(tmp_path.glob(".*")) == []


def test_a_listing_tells_versions(store: LocalStore) -> None:
    store.put("a", b"one")
    store.put("b", b"one")
    before = {info.key: info.version for info in store.list()}
    assert before == {info.key: info.version for info in store.list()}
    store.put("a", b"two")
    after = {info.key: info.version for info in store.list()}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_put_if_absent_has_exactly_one_winner(store: LocalStore) -> None:
    barrier = threading.Barrier(16)
    wins: list[bytes] = []

    def race(number: int) -> None:
        data = str(number).encode() * 1000
        barrier.wait()
        if store.put_if_absent("race/key", data):
            wins.append(data)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read("race/key") == wins[0]
    assert [info.key for info in store.list()] == ["race/key"]
    assert len(list((store.root / "race").iterdir())) == 1


def test_a_write_that_is_killed_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new")
    store.put("taken", b"old")
    seen: list[list[str]] = []

    def look(done: int) -> None:
        seen.append([path.name for path in store.root.iterdir()])

    store.upload("free", source, look)
    store.upload("taken", source, look)
    if len(seen[0]) > 1:
        pytest.skip("files have names from the start here")
    assert seen == [["taken"], seen[1]]
    assert sorted(seen[1]) == ["free", "taken"]
    assert [bytes(store.read(key)) for key in ("free", "taken")] == [b"new", b"new"]


def test_a_failed_upload_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    store.put("x", b"old")
    with pytest.raises(ObjectNotFound):
        store.upload("x", tmp_path / "missing")
    assert store.read("x") == b"old"
    assert len(list(store.root.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions_are_access_denied(store: LocalStore) -> None:
    store.put("x", b"1")
    (store.root / "x").chmod(0)
    with pytest.raises(AccessDenied):
        store.read("x")


def test_a_name_too_long_for_the_file_system_is_typed(store: LocalStore) -> None:
    with pytest.raises(StorageError):
        store.put("x" * 300, b"")


def test_a_snapshot_of_the_hub_s_cache(tmp_path: Path) -> None:
    """Its files are links to blobs: of the repository, or of several repositories."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    for folder in (snapshot / "sub", repository / "blobs", tmp_path / "hub/blobs/ab"):
        folder.mkdir(parents=True)
    (repository / "blobs/one").write_bytes(b"one")
    (tmp_path / "hub/blobs/ab/two").write_bytes(b"two")
    (tmp_path / "secret").write_bytes(b"s3cr3t")
    (repository / "blobs/two").symlink_to("../../blobs/ab/two")
    (snapshot / "one").symlink_to("../../blobs/one")
    (snapshot / "two").symlink_to("../../blobs/two")
    (snapshot / "sub/one").symlink_to("../../../blobs/one")
    (snapshot / "secret").symlink_to("../../../../secret")
    (snapshot / "beside").symlink_to("../../../models--acme--other")
    store = LocalStore(snapshot)
    assert store.read("one") == store.read("sub/one") == store.child("sub").read("one") == b"one"
    assert store.local_path("one") == snapshot / "one"
    assert {info.key for info in store.list()} >= {"one", "sub/one", "two"}
    with pytest.raises(AccessDenied, match="leads out"):  # Nothing says that this is such a cache.
        store.read("two")
    (tmp_path / "hub/blobs/.huggingface-shared-blobs").touch()
    assert store.read("two") == b"two"
    for key in ("secret", "beside/x"):
        with pytest.raises(AccessDenied, match="leads out"):
            store.read(key)


@pytest.mark.parametrize("folder", ["models--a--b/snapshot/c", "a--b/snapshots/c", "snapshots/c"])
def test_what_only_looks_like_the_hub_s_cache(folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder
    root.mkdir(parents=True)
    (root.parent.parent / "blobs").mkdir()
    (root.parent.parent / "blobs/one").write_bytes(b"one")
    (root / "one").symlink_to("../../blobs/one")
    with pytest.raises(AccessDenied, match="leads out"):
        LocalStore(root).read("one")
