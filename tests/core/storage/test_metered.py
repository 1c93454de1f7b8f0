from __future__ import annotations

from pathlib import Path

from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.metered import MeteredStore, Traffic
from strucprune_core.storage.store import Store


def test_bytes_are_counted_in_both_directions(tmp_path: Path) -> None:
    traffic = Traffic()
    store: Store = MeteredStore(LocalStore(tmp_path / "store"), traffic)
    child = store.child("a")
    child.put("one", b"12345")
    assert store.put_if_absent("a/two", b"123")
    assert not store.put_if_absent("a/two", b"1234567")
    (tmp_path / "file").write_bytes(b"x" * 100)
    store.upload("three", tmp_path / "file")
    assert traffic.take() == (0, 108)
    assert store.read("a/one", 1, 3) == b"234"
    store.download("three", tmp_path / "copy")
    assert traffic.take() == (103, 0)
    assert [info.key for info in store.list("a/")] == ["a/one", "a/two"]
    assert store.stat("three") is not None
    store.delete("three")
    assert store.stat("three") is None
    assert traffic.take() == (0, 0)
    assert child.uri == LocalStore(tmp_path / "store/a").uri
    assert store.local_path("a/one") == tmp_path / "store/a/one"
    store.check_writable()
    store.remove_unfinished(["a/one"])
