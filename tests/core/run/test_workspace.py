from __future__ import annotations

import json
from pathlib import Path

import pytest

from strucprune_core.errors import StorageError, StorageUnavailable, WorkspaceMismatch
from strucprune_core.run.manifest import Manifest, StoredFile
from strucprune_core.run.workspace import Draft, LostFile, Workspace
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import RemoteStore


def open_workspace(tmp_path: Path, *, scratch: str = "scratch", remote: bool = False) -> Workspace:
    store = (RemoteStore if remote else LocalStore)(tmp_path / "store")
    return Workspace(store, tmp_path / scratch, "job")


def finish(workspace: Workspace, unit: str, **files: bytes) -> Manifest:
    with workspace.draft() as draft:
        for name, data in files.items():
            draft.path(name).write_bytes(data)
        draft.values["made_of"] = sorted(files)
        stored = workspace.store(
            unit, draft, seconds=1.5, host_peak_bytes=7, device_peak_bytes=None
        )
        return workspace.adopt(stored)


@pytest.fixture(params=[False, True], ids=["local", "remote"])
def remote(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_manifest_survives_its_json() -> None:
    files = {"b": StoredFile("units/u/1/b", 3, "ff"), "a": StoredFile("units/u/1/a", 0, "00")}
    manifest = Manifest("u.3", files, {"x": [1.5, None]}, 0.25, 10, None)
    assert Manifest.from_body(json.loads(json.dumps(manifest.body()))) == manifest


def test_a_finished_unit_is_found_again(tmp_path: Path, remote: bool) -> None:
    first = open_workspace(tmp_path, remote=remote)
    assert first.manifest("capture.0") is None
    assert not first.has_file("capture.0", "gram")
    manifest = finish(first, "capture.0", gram=b"12345", empty=b"")
    for workspace in (first, open_workspace(tmp_path, scratch="other", remote=remote)):
        assert workspace.manifest("capture.0") == manifest
        assert workspace.values("capture.0") == {"made_of": ["empty", "gram"]}
        assert workspace.has_file("capture.0", "gram")
        assert not workspace.has_file("capture.0", "weight")
        assert workspace.file("capture.0", "gram").read_bytes() == b"12345"
        assert workspace.file("capture.0", "empty").read_bytes() == b""
        assert (manifest.seconds, manifest.host_peak_bytes) == (1.5, 7)
        assert manifest.files["gram"].sha256 == sha256_of_bytes(b"12345")


def test_units_that_are_not_finished(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    with pytest.raises(LookupError, match="solve"):
        workspace.values("solve.0")
    with pytest.raises(LookupError, match="solve"):
        workspace.file("solve.0", "weight")
    workspace.release("solve.0", "weight")  # nothing to do


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)

    def fail() -> None:
        with workspace.draft() as draft:
            draft.path("half").write_bytes(b"x")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert not list((tmp_path / "scratch").rglob("half"))
    assert open_workspace(tmp_path).manifest("capture.0") is None


def test_another_job_is_refused(tmp_path: Path) -> None:
    open_workspace(tmp_path)
    store = LocalStore(tmp_path / "store")
    with pytest.raises(WorkspaceMismatch, match="another job") as caught:
        Workspace(store, tmp_path / "scratch", "another")
    assert caught.value.remedy
    Workspace(store, tmp_path / "scratch", "job")


def test_a_released_file_is_gone_but_the_unit_is_finished(tmp_path: Path, remote: bool) -> None:
    workspace = open_workspace(tmp_path, remote=remote)
    manifest = finish(workspace, "u", big=b"x" * 100, small=b"y")
    workspace.release("u", "big")
    workspace.release("u", "big")
    for again in (workspace, open_workspace(tmp_path, scratch="other", remote=remote)):
        assert again.manifest("u") == manifest
        assert not again.has_file("u", "big")
        assert again.file("u", "small").read_bytes() == b"y"
    assert LocalStore(tmp_path / "store").stat(manifest.files["big"].key) is None
    assert not list((tmp_path / "scratch").rglob("big"))


def test_the_second_commit_loses_and_goes_on_with_the_winners_files(
    tmp_path: Path, remote: bool
) -> None:
    winner = open_workspace(tmp_path, scratch="a", remote=remote)
    loser = open_workspace(tmp_path, scratch="b", remote=remote)
    won = finish(winner, "u", file=b"winner's")
    got = finish(loser, "u", file=b"loser's!")
    assert got == won
    assert loser.manifest("u") == won
    assert loser.has_file("u", "file")
    assert loser.file("u", "file").read_bytes() == b"winner's"
    assert winner.file("u", "file").read_bytes() == b"winner's"


def test_forgetting_what_was_not_finished_spares_another_processes_manifest(
    tmp_path: Path,
) -> None:
    # A run forgets each unit before it computes it. One that was finished meanwhile by another
    # process must stay finished, or two reports would exist of one job.
    slow, fast = open_workspace(tmp_path, scratch="a"), open_workspace(tmp_path, scratch="b")
    won = finish(fast, "report", file=b"fast")
    slow.forget("report")
    assert finish(slow, "report", file=b"slow") == won
    assert open_workspace(tmp_path).manifest("report") == won


def test_forgetting_makes_a_unit_unfinished(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    finish(workspace, "u", file=b"old")
    workspace.forget("u")
    assert workspace.manifest("u") is None
    assert open_workspace(tmp_path).manifest("u") is None
    finish(workspace, "u", file=b"new")
    assert open_workspace(tmp_path).file("u", "file").read_bytes() == b"new"


def test_a_damaged_file_is_noticed_and_its_unit_forgotten(tmp_path: Path, remote: bool) -> None:
    manifest = finish(open_workspace(tmp_path, remote=remote), "u", file=b"12345")
    path = tmp_path / "store" / manifest.files["file"].key
    path.write_bytes(b"12245")  # same size: only the digest tells
    workspace = open_workspace(tmp_path, scratch="other", remote=remote)
    assert workspace.has_file("u", "file")
    with pytest.raises(StorageUnavailable, match="damaged") as caught:
        workspace.file("u", "file")
    assert caught.value.remedy
    assert workspace.manifest("u") is None
    assert open_workspace(tmp_path).manifest("u") is None


def test_a_truncated_or_deleted_file_is_not_there(tmp_path: Path) -> None:
    manifest = finish(open_workspace(tmp_path), "u", a=b"12345", b=b"12345")
    (tmp_path / "store" / manifest.files["a"].key).write_bytes(b"123")
    (tmp_path / "store" / manifest.files["b"].key).unlink()
    workspace = open_workspace(tmp_path)
    assert not workspace.has_file("u", "a")
    assert not workspace.has_file("u", "b")


def test_a_file_that_another_process_released_can_be_retried(tmp_path: Path, remote: bool) -> None:
    # Two processes on one job for a moment: the faster one has used and released the file.
    slow = open_workspace(tmp_path, scratch="a", remote=remote)
    fast = open_workspace(tmp_path, scratch="b", remote=remote)
    finish(fast, "u", file=b"12345")
    fast.release("u", "file")
    finish(slow, "u", file=b"12345")
    with pytest.raises(StorageError, match="file") as caught:
        slow.file("u", "file")
    assert caught.value.retryable
    assert open_workspace(tmp_path).manifest("u") is not None


def test_uploads_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_workspace(tmp_path, remote=True)
    finish(workspace, "u", file=b"12345")

    def refuse(*_: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(RemoteStore, "download", refuse)
    assert workspace.file("u", "file").read_bytes() == b"12345"


def test_attempts_never_share_a_file(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    keys = set()
    for _ in range(3):
        keys.add(finish(workspace, "u", file=b"x").files["file"].key)
        workspace.forget("u")
    assert len(keys) == 3


def test_the_owner_is_readable(tmp_path: Path) -> None:
    open_workspace(tmp_path)
    owner = json.loads((tmp_path / "store/job.json").read_text())
    assert owner["fingerprint"] == "job"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"seal": 1, "files": []}']
)
def test_a_manifest_that_is_none_makes_its_unit_unfinished(tmp_path: Path, content: bytes) -> None:
    finish(open_workspace(tmp_path), "u", file=b"old")
    path = tmp_path / "store/units/u/manifest.json"
    path.write_bytes(content)
    slow = open_workspace(tmp_path)
    path.write_bytes(content)  # and again, where a commit finds it
    won = finish(slow, "u", file=b"new")
    again = open_workspace(tmp_path)
    assert again.manifest("u") == won
    path.write_bytes(content)
    again.refresh()
    assert again.manifest("u") is None
    assert not path.exists()


def test_a_manifest_that_was_altered_is_none(tmp_path: Path) -> None:
    finish(open_workspace(tmp_path), "u", file=b"x")
    path = tmp_path / "store/units/u/manifest.json"
    body = json.loads(path.read_bytes())
    body["values"] = {"widths": [1, 2, 3]}
    path.write_text(json.dumps(body))
    assert open_workspace(tmp_path).manifest("u") is None


def test_values_of_every_form_come_back(tmp_path: Path) -> None:
    values = {"by_layer": {10: 0.1, 9: (1, 2)}, "odd": [float("inf"), 1e-310, None, "\u2028"]}
    workspace = open_workspace(tmp_path)
    with workspace.draft() as draft:
        draft.values |= values
        workspace.store("u", draft, seconds=0.0, host_peak_bytes=0, device_peak_bytes=None)
    found = open_workspace(tmp_path).values("u")
    assert found == json.loads(json.dumps(values))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"fingerprint": "another"}'])
def test_a_damaged_owner_is_written_again(tmp_path: Path, content: bytes) -> None:
    won = finish(open_workspace(tmp_path), "u", file=b"x")
    (tmp_path / "store/job.json").write_bytes(content)
    assert open_workspace(tmp_path).manifest("u") == won
    with pytest.raises(WorkspaceMismatch):
        Workspace(LocalStore(tmp_path / "store"), tmp_path / "scratch", "another")


def test_a_copy_that_vanished_from_this_machine_is_fetched_again(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, remote=True)
    finish(workspace, "u", file=b"12345")
    workspace.file("u", "file").unlink()
    assert workspace.file("u", "file").read_bytes() == b"12345"


def test_a_lost_file_names_its_unit_and_is_missed_after_a_second_look(
    tmp_path: Path, remote: bool
) -> None:
    manifest = finish(open_workspace(tmp_path, remote=remote), "u", file=b"12345")
    workspace = open_workspace(tmp_path, scratch="other", remote=remote)
    (tmp_path / "store" / manifest.files["file"].key).unlink()
    assert workspace.has_file("u", "file")
    with pytest.raises(LostFile, match="is gone") as caught:
        workspace.file("u", "file")
    assert caught.value.unit == "u"
    workspace.refresh()
    assert not workspace.has_file("u", "file")
    assert workspace.manifest("u") == manifest


def test_transfers_are_watched(tmp_path: Path) -> None:
    up: list[int] = []
    down: list[int] = []
    store = RemoteStore(tmp_path / "store")
    first = Workspace(store, tmp_path / "a", "job", on_upload=up.append, on_download=down.append)
    finish(first, "u", file=b"12345")
    second = Workspace(store, tmp_path / "b", "job", on_upload=up.append, on_download=down.append)
    second.file("u", "file")
    assert (up, down) == ([5], [5])


def test_a_reservation_is_kept(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    assert workspace.reservation("s3://work/out") is None
    workspace.keep_reservation("s3://work/out", b"{}")
    assert open_workspace(tmp_path).reservation("s3://work/out") == b"{}"
    assert open_workspace(tmp_path).reservation("s3://work/other") is None


def handed_on(workspace: Workspace, unit: str, data: bytes) -> Draft:
    """An attempt that has handed on a file and goes no further."""
    with workspace.draft() as draft:
        draft.path("chunk").write_bytes(data)
        workspace.hand_on(unit, draft, "chunk")
    return draft


def test_what_is_handed_on_is_read_before_the_unit_is_finished(
    tmp_path: Path, remote: bool
) -> None:
    writer, reader = (
        open_workspace(tmp_path, remote=remote),
        open_workspace(tmp_path, scratch="other", remote=remote),
    )
    assert reader.handed_on("capture.0", "chunk") is None
    handed_on(writer, "capture.0", b"dead attempt's")
    assert reader.handed_on("capture.0", "chunk") is None  # as far as is known
    assert not reader.look("capture.0")
    found = reader.handed_on("capture.0", "chunk")
    assert found is not None
    assert (found[0].read_bytes(), found[1]) == (
        b"dead attempt's",
        sha256_of_bytes(b"dead attempt's"),
    )
    assert reader.has_handed_on("capture.0", "chunk")
    assert not reader.has_handed_on("capture.0", "chun")
    assert not reader.has_file("capture.0", "chunk")

    with writer.draft() as draft:
        draft.path("chunk").write_bytes(b"finished")
        draft.path("other").write_bytes(b"x")
        writer.hand_on("capture.0", draft, "chunk")
        before = {info.key for info in LocalStore(tmp_path / "store").list("units/")}
        stored = writer.store(
            "capture.0", draft, seconds=1.0, host_peak_bytes=1, device_peak_bytes=None
        )
    after = {info.key for info in LocalStore(tmp_path / "store").list("units/")}
    assert {key.rpartition("/")[2] for key in after - before} == {"manifest.json", "other"}
    assert stored.manifest.files["chunk"].key in before
    assert reader.look("capture.0")
    found = reader.handed_on("capture.0", "chunk")
    assert found is not None
    assert found[0].read_bytes() == b"finished"

    reader.release("capture.0", "chunk")  # of every attempt
    left = [info.key for info in LocalStore(tmp_path / "store").list("units/")]
    assert sorted(key.rpartition("/")[2] for key in left) == ["manifest.json", "other"]
    assert reader.look("capture.0")


@pytest.mark.parametrize("how", ["cut", "changed", "of another file", "of another job"])
def test_what_was_not_handed_on_whole_is_not_there(tmp_path: Path, how: str, remote: bool) -> None:
    store = LocalStore(tmp_path / "store")
    writer = open_workspace(tmp_path, remote=remote)
    handed_on(writer, "capture.0", b"bytes")
    (key,) = (info.key for info in store.list("units/"))
    if how == "of another file":
        store.put(key.replace("chunk", "other"), b"bytes")
    elif how == "of another job":
        seal = Workspace(RemoteStore(tmp_path / "second"), tmp_path / "third", "another job")
        handed_on(seal, "capture.0", b"bytes")
        (foreign,) = (info.key for info in seal._store.list("units/"))
        store.delete(key)
        store.put(foreign, b"bytes")
    else:
        store.put(key, b"byte" if how == "cut" else b"bytez")
    reader = open_workspace(tmp_path, scratch="other", remote=remote)
    name = "other" if how == "of another file" else "chunk"
    assert reader.handed_on("capture.0", name) is None


def test_a_unit_that_cannot_be_stored_leaves_nothing_that_it_handed_on(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, remote=True)
    with workspace.draft() as draft:
        draft.path("chunk").write_bytes(b"bytes")
        workspace.hand_on("capture.0", draft, "chunk")
        draft.path("gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OSError, match="gone"):
            workspace.store(
                "capture.0", draft, seconds=1.0, host_peak_bytes=1, device_peak_bytes=None
            )
    assert [*LocalStore(tmp_path / "store").list("units/")] == []
