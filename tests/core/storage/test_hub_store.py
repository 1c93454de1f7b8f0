"""Against `tests.support.hub_server`, which stands in for huggingface.co: see there what it is."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, get_hf_file_metadata

from strucprune_core.errors import (
    AccessDenied,
    InvalidSpec,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.storage import hub_requests
from strucprune_core.storage.hub import HubStore, open_hub
from strucprune_core.storage.open import open_object, open_store, pinned
from strucprune_core.storage.store import ObjectInfo, Store
from strucprune_core.storage.uri import parse_uri
from tests.support.hub_server import Hub, blob_id, sha256, xet_hash

TOKEN = "hf_secret_of_the_tests"
LARGE = bytes(range(256)) * 400
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": LARGE,
    "empty": b"",
    "sub/one.txt": b"one",
    "sub/two.txt": b"two",
    "sub/deep/er.txt": b"three",
    "subway.txt": b"four",
}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def store(hub: Hub) -> HubStore:
    hub.add("acme/tiny", FILES)
    store = open_store("hf://acme/tiny")
    assert isinstance(store, HubStore)
    return store


def test_stat_and_read(store: HubStore, hub: Hub) -> None:
    typed: Store = store
    assert typed.stat("config.json") == ObjectInfo("config.json", 8)
    assert typed.read("config.json") == b'{"a": 1}'
    assert store.read("config.json", 1, 3) == b'"a"'
    assert store.read("model.safetensors", 300, 5000) == LARGE[300:5300]
    assert store.read("model.safetensors", len(LARGE) - 7) == LARGE[-7:]
    assert store.read("empty") == store.read("config.json", 8, 0) == b""
    assert store.local_path("config.json") is None
    assert store.stat("nothing") is None
    for length in (None, 0, 1):
        with pytest.raises(ObjectNotFound):
            store.read("nothing", 0, length)
    for start, length in ((4, 100), (8, 1), (9, 0)):
        with pytest.raises(StorageError):
            store.read("config.json", start, length)
    assert all(request.range for request in hub.asked("GET", "/resolve/"))


def test_listings_are_whole_whatever_their_pages(store: HubStore) -> None:
    assert {info.key: info.size_bytes for info in store.list()} == {
        name: len(data) for name, data in FILES.items()
    }
    assert {info.key for info in store.list("sub")} == {key for key in FILES if key[:3] == "sub"}
    assert {info.key for info in store.list("sub/t")} == {"sub/two.txt"}
    assert list(store.list("nothing/")) == []
    child = store.child("sub")
    assert {info.key for info in child.list()} == {"one.txt", "two.txt", "deep/er.txt"}
    assert child.read("deep/er.txt") == b"three"
    assert (child.uri, open_store("hf://acme/tiny/sub").uri) == (f"{store.uri}/sub",) * 2


def test_versions_are_digests_of_the_bytes(store: HubStore, hub: Hub) -> None:
    listed = {info.key: info.version for info in store.list()}
    for key in ("config.json", "model.safetensors"):
        info = store.stat(key)
        assert info is not None
        assert info.version == listed[key]
    assert listed["config.json"] == blob_id(FILES["config.json"])
    assert listed["model.safetensors"] == sha256(LARGE)


def test_files_in_xet_storage_are_read_by_plain_ranges(store: HubStore, hub: Hub) -> None:
    """A hub offers Xet in headers, which its own client would take: ours asks no Xet service."""
    url = f"{hub.endpoint}/acme/tiny/resolve/{hub.repos['acme/tiny'].branches['main']}"
    offered = get_hf_file_metadata(f"{url}/model.safetensors").xet_file_data
    assert offered is not None
    assert offered.file_hash == xet_hash(LARGE)
    assert store.stat("model.safetensors") == ObjectInfo("model.safetensors", len(LARGE))
    assert store.read("model.safetensors", 70_000, 30) == LARGE[70_000:70_030]
    assert store.read("model.safetensors") == LARGE
    assert not [request for request in hub.requests if "xet" in request.path]
    # The second host's own name for the file is not taken for its version.
    info = store.stat("model.safetensors")
    assert info is not None
    assert info.version == sha256(LARGE)


def test_a_store_stays_at_its_commit(store: HubStore, hub: Hub) -> None:
    first = pinned("hf://acme/tiny")
    assert store.read("config.json") == b'{"a": 1}'
    hub.repos["acme/tiny"].push({"config.json": b"new"})
    assert store.read("config.json") == b'{"a": 1}'
    assert "sub/one.txt" in {info.key for info in store.list()}
    assert open_store(first).read("config.json") == b'{"a": 1}'
    assert open_store("hf://acme/tiny").read("config.json") == b"new"
    assert len(hub.asked("GET", "/revision/")) == 3  # Not for the URI with a commit.


def test_revisions(hub: Hub) -> None:
    repo = hub.add("acme/tiny", {"x": b"main"})
    for branch in ("v1.0", "feature/x", "refs/pr/3"):
        repo.push({"x": branch.encode(), "below/x": b"deep"}, branch)
    for uri, expected in (
        ("hf://acme/tiny", b"main"),
        ("hf://acme/tiny@main", b"main"),
        ("hf://acme/tiny@v1.0", b"v1.0"),
        ("hf://acme/tiny@feature%2Fx", b"feature/x"),
        ("hf://acme/tiny@refs/pr/3", b"refs/pr/3"),
        ("hf://acme/tiny@refs%2Fpr%2F3/below", b"deep"),
        ("hf://models/acme/tiny@v1.0/below", b"deep"),
    ):
        assert open_store(uri).read("x") == expected
        assert re.search(r"@[0-9a-f]{40}(/below)?$", pinned(uri))
        assert open_store(pinned(uri)).read("x") == expected
        assert pinned(pinned(uri)) == pinned(uri)


def test_a_text_of_a_dataset(hub: Hub) -> None:
    hub.add("datasets/acme/prose", {"data/train 1.jsonl": b'{"text": "hello"}\n'})
    store, key = open_object("hf://datasets/acme/prose/data/train 1.jsonl")
    assert (store.uri, key) == ("hf://datasets/acme/prose/data", "train 1.jsonl")
    assert store.read(key, 2, 4) == b"text"
    assert not hub.asked("GET", "/tree/")  # A dataset may hold very many files.


def test_other_places_have_no_commit(tmp_path: Path) -> None:
    for uri in (str(tmp_path), "s3://bucket/key", "relative/path", f"hf://acme/x@{'a' * 40}/sub"):
        assert pinned(uri) == uri


def test_a_hub_is_only_read(store: HubStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for write in (
        lambda: store.put("x", b""),
        lambda: store.put_if_absent("x", b""),
        lambda: store.upload("x", tmp_path / "file"),
        lambda: store.delete("config.json"),
        lambda: store.check_writable(),
        lambda: store.remove_unfinished(["x"]),
    ):
        with pytest.raises(AccessDenied, match="strucprune publish"):
            write()


def test_keys_cannot_leave_the_folder(store: HubStore) -> None:
    for key in ("../x", "", "/x", "a//b"):
        with pytest.raises(AccessDenied):
            store.child("sub").read(key)


def test_download_ticks(store: HubStore, tmp_path: Path) -> None:
    ticks: list[int] = []
    store.download("model.safetensors", tmp_path / "copy", ticks.append)
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert ticks == [len(LARGE)]
    with pytest.raises(ObjectNotFound):
        store.download("nothing", tmp_path / "other")
    with pytest.raises(StorageUnavailable, match="local file"):
        store.download("config.json", tmp_path / "no" / "folder")


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CDN of `hub_server` refuses requests with a token."""
    hub.add("acme/secret", FILES, private=True)
    with pytest.raises(StrucPruneError, match="HF_TOKEN"):
        open_store("hf://acme/secret").read("config.json")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_store("hf://acme/secret").read("model.safetensors") == LARGE
    to_cdn = hub.asked("GET", "/lfs/")
    assert to_cdn
    assert not any(request.token for request in to_cdn)
    assert {request.token for request in hub.asked("GET", "/resolve/")} == {TOKEN}


@pytest.mark.parametrize(
    ("uri", "kind", "words"),
    [
        ("hf://acme/nothing", StrucPruneError, "Set HF_TOKEN"),
        ("hf://acme/tiny@v9", ObjectNotFound, "no such revision"),
        ("hf://acme/tiny@" + "0" * 40, ObjectNotFound, "no such revision"),
        ("hf://acme/gated", AccessDenied, "Accept its conditions .* HF_TOKEN"),
    ],
)
def test_what_cannot_be_read(
    uri: str, kind: type[StrucPruneError], words: str, store: HubStore, hub: Hub
) -> None:
    hub.add("acme/gated", FILES, gated=True)
    with pytest.raises(kind, match=words):
        open_store(uri).read("config.json")


def test_a_wrong_token_is_named(hub: Hub, store: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired_long_ago")
    with pytest.raises(AccessDenied, match="Set HF_TOKEN to a valid token") as caught:
        store.read("config.json")
    assert "hf_expired" not in str(caught.value)


def test_a_token_that_no_header_can_hold_is_not_shown(
    store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_gr\u00fc\u00dfe")
    with pytest.raises(InvalidSpec, match="HF_TOKEN holds characters") as caught:
        store.read("config.json")
    assert "hf_" not in caught.value.message


def test_redirects_without_end(store: HubStore, hub: Hub) -> None:
    hub.faults = lambda method, path: (302, {"Location": path})
    for ask in (lambda: store.stat("config.json"), lambda: store.read("config.json", 0, 1)):
        with pytest.raises(StorageError, match="redirects every request"):
            ask()


def test_offline(store: HubStore, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=r"HF_HUB_OFFLINE is set.*snapshots"):
        store.read("config.json")
    assert hub.requests == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_short_failures_are_bridged(status: int, store: HubStore, hub: Hub) -> None:
    left = [status, status]
    hub.faults = lambda method, path: (left.pop(), {}) if left else None
    assert store.read("config.json") == b'{"a": 1}'


def test_failures_of_the_other_host_are_bridged(store: HubStore, hub: Hub) -> None:
    left = [503]
    hub.faults = lambda method, path: (left.pop(), {}) if "/lfs/" in path and left else None
    assert store.read("model.safetensors", 5, 5) == LARGE[5:10]


def test_files_that_break_off_are_read_again(store: HubStore, hub: Hub) -> None:
    for key in ("config.json", "model.safetensors"):
        hub.broken = 2
        assert store.read(key, 2, 6) == FILES[key][2:8]
        assert hub.broken == 0
    hub.broken = 100
    with pytest.raises(StorageUnavailable, match="does not answer"):
        store.read("config.json")
    assert hub.broken == 100 - hub_requests.ATTEMPTS


def test_an_outage_is_reported(store: HubStore, hub: Hub) -> None:
    hub.faults = lambda method, path: (503, {})
    with pytest.raises(StorageUnavailable, match="cannot answer now"):
        store.read("config.json")
    assert len(hub.requests) == hub_requests.ATTEMPTS


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "3600"}, {"RateLimit": '"api";r=0;t=3600'}], ids=["old", "new"]
)
def test_a_long_limit_is_not_waited_for(headers: dict[str, str], store: HubStore, hub: Hub) -> None:
    hub.faults = lambda method, path: (429, headers)
    with pytest.raises(StorageUnavailable, match="no more requests for 3600 s"):
        store.read("config.json")
    assert len(hub.requests) == 1


def test_a_short_limit_is_waited_for(
    store: HubStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    monkeypatch.setattr(hub_requests, "time", clock)
    left = [1]
    headers = {"RateLimit": '"api";r=0;t=55'}
    hub.faults = lambda method, path: (429, headers) if left and left.pop() else None
    assert store.read("config.json") == b'{"a": 1}'
    assert slept == [56]
    hub.faults = lambda method, path: (429, headers)
    with pytest.raises(StorageUnavailable, match="for 55 s"):
        open_hub(parse_uri("hf://acme/tiny"), longest_wait_seconds=10).read("config.json")
    assert slept == [56]


def test_a_hub_that_ignores_ranges(
    store: HubStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.ignores_ranges = True
    assert store.read("model.safetensors", 300, 5000) == LARGE[300:5300]
    assert store.read("config.json", 0, 4) == b'{"a"'
    with pytest.raises(StorageError, match="bytes before byte"):
        store.read("config.json", 4, 100)
    monkeypatch.setattr(hub_requests, "MAX_SKIPPED_BYTES", 299)
    with pytest.raises(StorageError, match="ignored the byte range"):
        store.read("model.safetensors", 300, 5000)


def test_slow_answers_end(store: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte must not start the time again."""
    assert store.read("config.json", 0, 8) == b'{"a": 1}'
    # A clock that shows a minute more whenever it is looked at.
    minutes = itertools.count(step=61)
    clock = SimpleNamespace(monotonic=lambda: float(next(minutes)), sleep=lambda seconds: None)
    monkeypatch.setattr(hub_requests, "time", clock)
    with pytest.raises(StorageUnavailable, match="too slowly"):
        store.read("config.json", 0, 8)


def test_answers_that_are_no_hub_s(hub: Hub, store: HubStore) -> None:
    hub.repos["acme/tiny"].branches["main"] = "not a commit"
    hub.repos["acme/tiny"].commits["not a commit"] = {}
    with pytest.raises(StorageError, match="is no commit"):
        store.read("config.json")


@pytest.mark.parametrize(
    ("endpoint", "kind", "words"),
    [
        ("http://127.0.0.1:1", StorageUnavailable, "does not answer.*HF_ENDPOINT"),
        ("nonsense", InvalidSpec, "Correct HF_ENDPOINT"),
    ],
)
def test_wrong_endpoints(
    endpoint: str, kind: type[StrucPruneError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(kind, match=words):
        open_store("hf://acme/tiny").read("config.json")


def test_hostile_listings(hub: Hub, store: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "MAX_ANSWER_BYTES", 100)
    with pytest.raises(StorageError, match="more than 100 bytes"):
        list(store.list())
    monkeypatch.setattr(hub_requests, "MAX_ANSWER_BYTES", 2**20)
    monkeypatch.setattr(hub_requests, "MAX_ENTRIES", 6)
    with pytest.raises(StorageError, match="more than 6 files"):
        list(store.list())


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file"},
        {"type": "file", "path": "x", "size": -1, "oid": "a"},
        {"type": "file", "path": "../x", "size": 1, "oid": "a"},
        {"type": "file", "path": 3, "size": 1, "oid": "a"},
        {"type": "file", "path": "x", "size": "many", "oid": "a"},
        {"type": "file", "path": "x", "size": 1, "oid": "a", "lfs": ["b"]},
        "file",
        None,
    ],
)
def test_malformed_entries(entry: object, store: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(*_: object) -> Iterator[list[object]]:
        yield [entry]

    monkeypatch.setattr(store.repository.client, "pages", pages)
    with pytest.raises(StorageError):
        list(store.list())
