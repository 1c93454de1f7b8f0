"""Against `tests.support.hub_server`: a hub of our own, without Xet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from strucprune_core.errors import (
    AccessDenied,
    InvalidCheckpoint,
    InvalidSpec,
    OutputNotEmpty,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.report.card import MARK
from strucprune_core.run.publish_to_hub import Published, publish_to_hub
from strucprune_core.storage import hub_requests
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import ReadableStore
from strucprune_core.storage.uri import parse_uri
from tests.support.hub_server import LFS_BYTES, Hub, sha256

# The library's own, in an upload to the LFS store.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": b"weights" * 100,
    "tokenizer.json": b"t" * (LFS_BYTES + 1),
    "gguf/model.gguf": b"g" * (2 * LFS_BYTES),
    "report.json": b"{}",
}


@pytest.fixture(autouse=True)
def _writer(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_TOKEN", next(iter(hub.tokens)))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_requests, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def result(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "result")
    return _written(store, FILES)


def _written(store: LocalStore, files: dict[str, bytes]) -> LocalStore:
    for name, data in files.items():
        store.put(name, data)
    entries = [
        {"name": name, "bytes": len(data), "sha256": sha256_of_bytes(data)}
        for name, data in files.items()
    ]
    manifest = {"format_version": 1, "files": entries}
    store.put("strucprune.json", json.dumps(manifest).encode())
    return store


def publish(
    store: ReadableStore, scratch: Path, *, public: bool = False, replace: bool = False
) -> Published:
    scratch.mkdir(exist_ok=True)
    target = parse_uri("hf://acme/small")
    return publish_to_hub(store, target, scratch, public=public, replace=replace)


def test_a_result_becomes_a_private_repository(
    result: LocalStore, hub: Hub, tmp_path: Path
) -> None:
    (result.root / ".env").write_text("PASSWORD=x")  # Only what the manifest lists goes out.
    published = publish(result, tmp_path / "scratch")
    repo = hub.repos["acme/small"]
    head = repo.head()
    assert repo.private
    assert {name: head[name] for name in FILES} == FILES
    assert set(head) == {*FILES, "strucprune.json", ".gitattributes"}
    assert head["strucprune.json"] == result.read("strucprune.json")
    assert published.uri == f"hf://acme/small@{repo.branches['main']}"
    assert published.url == f"{hub.endpoint}/acme/small"
    assert (published.private, published.files) == (True, len(FILES) + 1)
    assert published.total_bytes == sum(map(len, FILES.values())) + len(head["strucprune.json"])
    assert len(repo.commits) == 2  # That of its creation, and one with all files.


def test_large_files_are_sent_in_parts(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    hub.part_bytes = 1000
    publish(result, tmp_path / "scratch")
    head = hub.repos["acme/small"].head()
    assert {name: head[name] for name in FILES} == FILES
    numbers = [number for digest, number in hub.parts if digest == sha256(FILES["gguf/model.gguf"])]
    assert sorted(numbers) == list(range(1, 10))
    assert sum(len(part) for part in hub.parts.values()) == 3 * LFS_BYTES + 1


def test_public_only_if_asked(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    published = publish(result, tmp_path / "scratch", public=True)
    assert not hub.repos["acme/small"].private
    assert not published.private


def test_no_accidental_publication(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    repo = hub.add("acme/small", {".gitattributes": b""})
    with pytest.raises(AccessDenied, match=r"is public.*--public"):
        publish(result, tmp_path / "scratch")
    assert repo.head() == {".gitattributes": b""}
    assert publish(result, tmp_path / "scratch", public=True).private is False


def test_a_card_is_renewed_until_somebody_makes_it_their_own(hub: Hub, tmp_path: Path) -> None:
    ours = MARK.encode() + b"\n# Pruned"
    result = _written(LocalStore(tmp_path / "carded"), {**FILES, "README.md": ours})
    publish(result, tmp_path / "scratch")
    repo = hub.repos["acme/small"]
    assert repo.head()["README.md"] == ours
    repo.push({**repo.head(), "README.md": b"older\n" + MARK.encode()})
    publish(result, tmp_path / "scratch", replace=True)
    assert repo.head()["README.md"] == ours
    repo.push({**repo.head(), "README.md": ours.replace(MARK.encode(), b"")})
    publish(result, tmp_path / "scratch", replace=True)
    assert repo.head()["README.md"] == ours.replace(MARK.encode(), b"")


def test_other_files_stay_unless_asked(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    others = {"README.md": b"mine", "model-00001-of-00002.safetensors": b"old", "config.json": b"o"}
    repo = hub.add("acme/small", {".gitattributes": b"", **others}, private=True)
    with pytest.raises(OutputNotEmpty, match=r"already holds 'config\.json'.*--replace"):
        publish(result, tmp_path / "scratch")
    assert repo.head() == {".gitattributes": b"", **others}
    assert not hub.asked("PUT", "/lfs/")
    publish(result, tmp_path / "scratch", replace=True)
    assert set(repo.head()) == {*FILES, "strucprune.json", ".gitattributes", "README.md"}
    assert (repo.head()["README.md"], repo.head()["config.json"]) == (b"mine", b'{"a": 1}')


def test_an_empty_repository_with_a_card_may_be_filled(
    result: LocalStore, hub: Hub, tmp_path: Path
) -> None:
    repo = hub.add("acme/small", {".gitattributes": b"", "README.md": b"mine"}, private=True)
    publish(result, tmp_path / "scratch")
    assert repo.head()["README.md"] == b"mine"
    assert repo.head()["model.safetensors"] == FILES["model.safetensors"]


def test_an_altered_result_is_not_published(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    for name, data, words in (
        ("model.safetensors", b"W" * 700, "model.safetensors is not the file that was written"),
        ("config.json", b"{}", "config.json is not the file that was written"),
        ("strucprune.json", b"{", "damaged"),
    ):
        before = bytes(result.read(name))
        result.put(name, data)
        with pytest.raises(InvalidCheckpoint, match=words):
            publish(result, tmp_path / "scratch")
        result.put(name, before)
    result.delete("report.json")
    with pytest.raises(InvalidCheckpoint, match=r"report\.json is missing"):
        publish(result, tmp_path / "scratch")
    result.delete("strucprune.json")
    with pytest.raises(InvalidCheckpoint, match=r"there is no strucprune\.json"):
        publish(result, tmp_path / "scratch")
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())


class Elsewhere(LocalStore):
    """Its files lie on another machine."""

    def local_path(self, key: str) -> Path | None:
        return None


def test_a_result_on_another_machine(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    publish(Elsewhere(result.root), tmp_path / "scratch")
    head = hub.repos["acme/small"].head()
    assert {name: head[name] for name in FILES} == FILES
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_failed_upload_commits_nothing_and_can_be_repeated(
    result: LocalStore, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = lambda method, path: (403, {}) if method == "PUT" else None
    with pytest.raises(StrucPruneError):
        publish(result, tmp_path / "scratch")
    assert set(hub.repos["acme/small"].head()) == {".gitattributes"}
    hub.faults = lambda method, path: (400, {}) if "/commit/" in path else None
    with pytest.raises(StrucPruneError):
        publish(result, tmp_path / "scratch")
    hub.faults = lambda *_: None
    sent = len(hub.asked("PUT", "/lfs/"))
    publish(result, tmp_path / "scratch")
    assert len(hub.asked("PUT", "/lfs/")) == sent  # What had arrived is not sent again.
    assert hub.repos["acme/small"].head()["model.safetensors"] == FILES["model.safetensors"]


def test_a_branch_that_moves_meanwhile(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    repo = hub.add("acme/small", {".gitattributes": b""}, private=True)

    def push(method: str, path: str) -> None:
        if "/commit/" in path:
            repo.push({"theirs": b"x"})

    hub.faults = push
    with pytest.raises(StrucPruneError, match="412"):
        publish(result, tmp_path / "scratch")
    assert repo.head() == {"theirs": b"x"}


def test_a_hub_that_lost_a_file_is_noticed(
    result: LocalStore, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = type(hub.add("other/repo", {})).push
    monkeypatch.setattr(
        "tests.support.hub_server.Repo.push",
        lambda repo, files, branch="main": push(
            repo, {name: data for name, data in files.items() if name != "config.json"}, branch
        ),
    )
    with pytest.raises(StrucPruneError, match=r"does not hold config\.json"):
        publish(result, tmp_path / "scratch")


def test_without_a_token(
    result: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        publish(result, tmp_path / "scratch")


def test_an_outage(result: LocalStore, hub: Hub, tmp_path: Path) -> None:
    hub.faults = lambda method, path: (503, {}) if path.startswith("/api/models") else None
    with pytest.raises(StorageUnavailable):
        publish(result, tmp_path / "scratch")


@pytest.mark.parametrize(
    "target",
    ["s3://bucket/x", "hf://acme/small/folder", "hf://acme/small@dev", "hf://datasets/acme/small"],
)
def test_targets_that_are_no_model_repository(
    target: str, result: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSpec, match="hf://org/name"):
        publish_to_hub(result, parse_uri(target), tmp_path)
